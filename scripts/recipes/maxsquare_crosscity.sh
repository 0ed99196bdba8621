#!/usr/bin/env bash
# MaxSquare, Cityscapes to Rome, Rio, Tokyo and Taipei of CrossCity with 13 classes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/maxsquare_crosscity.sh [--fast] [--dry-run] [ROW ...]
SOURCE=cityscapes TARGET=crosscity
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

source_training() {
    train source/CITYSCAPES_80000.pth train_source.py --num-classes 13 --input-size 1024,512 "${START[@]}" \
        --num-steps 200000 --num-steps-stop 80000
}
source_only() { # CITY
    source_training
    score source/CITYSCAPES_80000.pth --city-name "$1" --protocol maxsquare --flip
}
adapt() { # CITY FLAG...
    [ -n "$SOURCE_WEIGHTS" ] || source_training
    train "$NAME/CITYSCAPES_29750.pth" train_maxsquare.py --city-name "$1" --num-classes 13 --input-size 1024,512 \
        --restore-from "${SOURCE_WEIGHTS:-$(weights source/CITYSCAPES_80000.pth)}" --epoch-num 10 --lambda-target 0.1 "${@:2}"
    score "$NAME/CITYSCAPES_29750.pth" --city-name "$1" --protocol maxsquare --flip
}

row source_rome "51.0 (authors' README)" 80000 "4.3 (2.5) GB, at least 0.8 (0.4) h" source_only Rome
row source_rio "48.9 (authors' README)" 80000 "4.3 (2.5) GB, at least 0.8 (0.4) h" source_only Rio
row source_tokyo "47.8 (authors' README)" 80000 "4.3 (2.5) GB, at least 0.8 (0.4) h" source_only Tokyo
row source_taipei "46.3 (authors' README)" 80000 "4.3 (2.5) GB, at least 0.8 (0.4) h" source_only Taipei
row maxsquare_rome "53.9 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Rome --target-mode maxsquare
row maxsquare_rio "52.0 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Rio --target-mode maxsquare
row maxsquare_tokyo "49.7 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Tokyo --target-mode maxsquare
row maxsquare_taipei "49.8 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Taipei --target-mode maxsquare
row iw_rome "54.5 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Rome --target-mode IW_maxsquare --IW-ratio 0.2
row iw_rio "53.3 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Rio --target-mode IW_maxsquare --IW-ratio 0.2
row iw_tokyo "50.5 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Tokyo --target-mode IW_maxsquare --IW-ratio 0.2
row iw_taipei "50.6 (authors' README)" 29750 "4.5 (2.7) GB, at least 0.6 (0.3) h" adapt Taipei --target-mode IW_maxsquare --IW-ratio 0.2
