#!/usr/bin/env bash
# AdaptSegNet, SYNTHIA to Cityscapes with 16 classes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/adaptsegnet_synthia.sh [--fast] [--dry-run] [ROW ...]
SOURCE=synthia TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # FLAG...
    train "$NAME/SYNTHIA_150000.pth" train_adaptsegnet.py --num-classes 16 "${START[@]}" "$@"
    score "$NAME/SYNTHIA_150000.pth"
}

row multi "without a figure in the authors' README" 150000 "7.9 (4.4) GB, at least 4.3 (2.1) h" adapt
