#!/usr/bin/env bash
# DACS, SYNTHIA to Cityscapes (16 classes).
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/dacs_synthia.sh [--fast] [--dry-run] [ROW ...]
SOURCE=synthia TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # FLAG...
    train "$NAME/checkpoint-iter250000.pth" train_dacs.py --num-classes 16 "${START[@]}" "$@"
    score "$NAME/checkpoint-iter250000.pth" --protocol dacs
}

row dacs "48.3 (quoted in DAFormer's README)" 250000 "4.8 (2.9) GB, at least 5.6 (2.8) h" adapt
