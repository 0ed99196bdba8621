#!/usr/bin/env bash
# FADA, GTA5 to Cityscapes, all stages. Published on 4 GPUs: LAUNCH="torchrun --nproc-per-node 4".
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/fada_gta5.sh [--fast] [--dry-run] [ROW ...]
SOURCE=gta5 TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # FLAG...
    train "$NAME/distill/model_iter020000.pth" train_fada.py --stage all "${START[@]}" "$@"
    score "$NAME/distill/model_iter020000.pth" --protocol fada --input-size 2048,1024
}

row resnet101 "without a figure in the authors' README" "20000, 40000 and 20000" "per GPU of four 8.3 (4.6) GB, at least 2.0 (0.9) h and the labelling" adapt
row vgg16 "without a figure in the authors' README" "20000, 40000 and 20000" "per GPU of four 4.0 (2.7) GB, at least 1.2 (0.6) h and the labelling" \
    adapt --model deeplab_vgg16
