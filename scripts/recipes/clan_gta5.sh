#!/usr/bin/env bash
# CLAN, GTA5 to Cityscapes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/clan_gta5.sh [--fast] [--dry-run] [ROW ...]
SOURCE=gta5 TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # FLAG...
    train "$NAME/GTA5_100000.pth" train_clan.py "${START[@]}" "$@"
    score "$NAME/GTA5_100000.pth" --protocol clan
}

row clan "43.2 (named by users who reproduced it)" 100000 "7.7 (4.4) GB, at least 2.8 (1.4) h" adapt
