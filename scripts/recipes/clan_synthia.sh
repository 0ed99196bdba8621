#!/usr/bin/env bash
# CLAN, SYNTHIA to Cityscapes: trained with 19 classes, reported on 13.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/clan_synthia.sh [--fast] [--dry-run] [ROW ...]
SOURCE=synthia TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # EVALUATION FLAG...
    train "$NAME/SYNTHIA_100000.pth" train_clan.py "${START[@]}" "${@:2}"
    score "$NAME/SYNTHIA_100000.pth" --protocol "$1"
}

row clan "47.8 over 13 classes (the paper, quoted by the reproduction's README)" 100000 "8.1 (4.7) GB, at least 2.9 (1.4) h" adapt clan
row paddle "45.59 as mIoU-13 (README of the reproduction in PaddlePaddle)" 100000 "4.8 (3.0) GB, at least 2.0 (1.0) h at scale 1 (it trains at 1.5)" \
    adapt clan-paddle --protocol paddle
