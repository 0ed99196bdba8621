#!/usr/bin/env bash
# MaxSquare, GTA5 to Cityscapes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/maxsquare_gta5.sh [--fast] [--dry-run] [ROW ...]
SOURCE=gta5 TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

source_training() { # NAME FLAG...
    train "$1/GTA5_80000.pth" train_source.py "${START[@]}" --num-steps 200000 --num-steps-stop 80000 "${@:2}"
}
source_only() {
    source_training source
    score source/GTA5_80000.pth --protocol maxsquare --flip
}
adapt() { # SOURCE FLAG...
    [ -n "$SOURCE_WEIGHTS" ] || source_training "$1" $([ "$1" = source ] || echo --multi)
    train "$NAME/GTA5_29750.pth" train_maxsquare.py --restore-from "${SOURCE_WEIGHTS:-$(weights "$1/GTA5_80000.pth")}" \
        --round-num 5 --lambda-target 0.1 "${@:2}"
    score "$NAME/GTA5_29750.pth" --protocol maxsquare --flip
}

row source "36.9 (authors' README)" 80000 "7.3 (4.0) GB, at least 1.3 (0.6) h" source_only
row minent "42.2 (authors' README)" 29750 "7.4 (4.1) GB, at least 0.8 (0.4) h" adapt source --target-mode entropy
row maxsquare "44.3 (authors' README)" 29750 "7.4 (4.1) GB, at least 0.8 (0.4) h" adapt source --target-mode maxsquare
row iw "45.2 (authors' README)" 29750 "7.4 (4.1) GB, at least 0.8 (0.4) h" adapt source --target-mode IW_maxsquare --IW-ratio 0.2
row multi "46.4 (authors' README)" 29750 "7.5 (4.2) GB, at least 0.9 (0.5) h" \
    adapt source_multi --target-mode IW_maxsquare --IW-ratio 0.2 --multi True --input-size-target 1280,640 \
    --lambda-target 0.09 --lambda-seg 0.1 --threshold 0.95
