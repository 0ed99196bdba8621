#!/usr/bin/env bash
# AdaptSegNet, and AdvEnt and MinEnt, GTA5 to Cityscapes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/adaptsegnet_gta5.sh [--fast] [--dry-run] [ROW ...]
SOURCE=gta5 TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

adapt() { # STEPS FLAG...
    train "$NAME/GTA5_$1.pth" train_adaptsegnet.py "${START[@]}" "${@:2}"
    score "$NAME/GTA5_$1.pth"
}

row multi "42.35 (authors' README)" 150000 "7.6 (4.3) GB, at least 4.1 (2.1) h" adapt 150000
row single "without a figure in the authors' README" 150000 "7.6 (4.3) GB, at least 4.1 (2.1) h" \
    adapt 150000 --lambda-seg 0.0 --lambda-adv-target1 0.0 --lambda-adv-target2 0.001
row lsgan "without a figure in the authors' README" 150000 "7.6 (4.3) GB, at least 4.1 (2.1) h" \
    adapt 150000 --lambda-seg 0.0 --lambda-adv-target1 0.0 --lambda-adv-target2 0.01 --gan LS
row paddle "42.32 (README of the reproduction in PaddlePaddle)" 100000 "14.7 (8.1) GB, at least 5.4 (2.6) h" \
    adapt 100000 --protocol paddle --batch-size 2 --num-steps-stop 100000
row advent "46.3 on translated images, the best of 60 snapshots (ADVENT's README)" 120001 "7.6 (4.3) GB, at least 3.5 (1.8) h" \
    adapt 120001 --protocol advent
row minent "without a figure in ADVENT's README" 120000 "7.5 (4.3) GB, at least 3.2 (1.6) h" adapt 120000 --protocol minent
