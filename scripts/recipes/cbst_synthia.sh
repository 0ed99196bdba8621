#!/usr/bin/env bash
# CBST on ResNet-38, SYNTHIA to Cityscapes with 16 classes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/cbst_synthia.sh [--fast] [--dry-run] [ROW ...]
SOURCE=synthia TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# The authors' source training has crops that train_source.py has not: to start from their weights, name them in SOURCE_WEIGHTS.
adapt() { # FLAG...
    [ -n "$SOURCE_WEIGHTS" ] ||
        train source/SYNTHIA_80000.pth train_source.py --model ResNet38 --batch-norm frozen-statistics --num-classes 16 \
            "${START[@]}" --num-steps 200000 --num-steps-stop 80000
    train "$NAME/round11/synthia2cityscapes_round11_epoch2.pth" train_cbst.py --model ResNet38 --num-classes 16 \
        --restore-from "${SOURCE_WEIGHTS:-$(weights source/SYNTHIA_80000.pth)}" --num-rounds 12 \
        --init-tgt-port 0.2 --init-src-port 0.02 "$@"
    score "$NAME/round11/synthia2cityscapes_round11_epoch2.pth" --protocol cbst
}

row cbst38 "without a figure in the authors' README" "about 39500" "4.3 (2.9) GB, at least 0.74 (0.37) h and the labelling" adapt
