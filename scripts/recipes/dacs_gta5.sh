#!/usr/bin/env bash
# DACS, GTA5 to Cityscapes; also with masked images, and with rare class sampling (no published run adds these to DACS' network).
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/dacs_gta5.sh [--fast] [--dry-run] [ROW ...]
SOURCE=gta5 TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # FLAG...
    train "$NAME/checkpoint-iter250000.pth" train_dacs.py "${START[@]}" "$@"
    score "$NAME/checkpoint-iter250000.pth" --protocol dacs
}

row dacs "53.04 at its end (authors' README)" 250000 "4.8 (2.9) GB, at least 5.6 (2.8) h" adapt
row mask "without a figure" 250000 "4.9 (3.0) GB, at least 8.0 (4.0) h" adapt --mask
row rcs "without a figure" 250000 "4.8 (2.9) GB, at least 5.6 (2.8) h, and counting the pixels" adapt --rare-class-sampling 0.01
