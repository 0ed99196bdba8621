#!/usr/bin/env bash
# MaxSquare, SYNTHIA to Cityscapes with 16 classes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/maxsquare_synthia.sh [--fast] [--dry-run] [ROW ...]
SOURCE=synthia TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

source_training() {
    train source/SYNTHIA_80000.pth train_source.py --num-classes 16 "${START[@]}" --num-steps 200000 --num-steps-stop 80000
}
source_only() {
    source_training
    score source/SYNTHIA_80000.pth --protocol maxsquare --flip
}
adapt() { # FLAG...
    [ -n "$SOURCE_WEIGHTS" ] || source_training
    train "$NAME/SYNTHIA_29750.pth" train_maxsquare.py --num-classes 16 \
        --restore-from "${SOURCE_WEIGHTS:-$(weights source/SYNTHIA_80000.pth)}" --round-num 5 --lambda-target 0.1 "$@"
    score "$NAME/SYNTHIA_29750.pth" --protocol maxsquare --flip
}

row source "without a figure in the authors' README" 80000 "7.7 (4.2) GB, at least 1.4 (0.7) h" source_only
row maxsquare "without a figure in the authors' README" 29750 "7.8 (4.2) GB, at least 0.8 (0.4) h" adapt --target-mode maxsquare
row iw "without a figure in the authors' README" 29750 "7.8 (4.2) GB, at least 0.8 (0.4) h" adapt --target-mode IW_maxsquare --IW-ratio 0.2
