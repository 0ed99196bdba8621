#!/usr/bin/env bash
# CBST, MRKLD and LRENT (CRST, on DeepLab v2), and CBST and CBST-SP (on ResNet-38), GTA5 to Cityscapes.
# Begin with --fast, which takes about half the time and memory; without it the precision is the published one, too.
#     bash scripts/recipes/cbst_gta5.sh [--fast] [--dry-run] [ROW ...]
SOURCE=gta5 TARGET=cityscapes
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# The authors of CRST say little of their source training, and CBST's has crops that train_source.py has not: to start from their
# weights, name the file in SOURCE_WEIGHTS.
source_training() { # NAME FLAG...
    train "$1/GTA5_80000.pth" train_source.py "${START[@]}" --num-steps 200000 --num-steps-stop 80000 "${@:2}"
}
crst_source() { source_training source --model DeeplabRes --aspp-branches 4 --batch-norm frozen; }
source_only() {
    crst_source
    score source/GTA5_80000.pth --protocol crst
}
crst() { # FLAG...
    [ -n "$SOURCE_WEIGHTS" ] || crst_source
    train "$NAME/round2/gta52cityscapes_round2_epoch2.pth" train_cbst.py \
        --restore-from "${SOURCE_WEIGHTS:-$(weights source/GTA5_80000.pth)}" "$@"
    score "$NAME/round2/gta52cityscapes_round2_epoch2.pth" --protocol crst
}
resnet38() { # FLAG...
    [ -n "$SOURCE_WEIGHTS" ] || source_training source38 --model ResNet38 --batch-norm frozen-statistics
    train "$NAME/round5/gta52cityscapes_round5_epoch2.pth" train_cbst.py --model ResNet38 \
        --restore-from "${SOURCE_WEIGHTS:-$(weights source38/GTA5_80000.pth)}" "$@"
    score "$NAME/round5/gta52cityscapes_round5_epoch2.pth" --protocol cbst
}
spatial_prior() { # FLAG...
    [ -e "$RUNS/prior.mat" ] ||
        run "$PYTHON" "$ROOT/scripts/spatial_prior.py" --source gta5 --data-dir "$(root gta5)" --output "$RUNS/prior.mat" \
            ${MINI:+--size 96,48 --workers 1}
    resnet38 --with-prior --prior "$RUNS/prior.mat" "$@"
}

row source "33.35 (CRST's authors)" 80000 "4.0 (2.3) GB, at least 1.2 (0.5) h" source_only
row cbst "46.47 (CRST's authors, on 505 target images)" "about 11400" "4.5 (2.6) GB, at least 0.20 (0.09) h and the labelling" crst
row mrkld "47.39 (CRST's authors, on 505 target images)" "about 11400" "4.5 (2.6) GB, at least 0.20 (0.09) h and the labelling" crst --mr-weight-kld 0.1
row lrent "46.51 (CRST's authors, on 505 target images)" "about 11400" "4.5 (2.6) GB, at least 0.20 (0.09) h and the labelling" crst --lr-weight-ent 0.25
row cbst38 "without a figure in the authors' README" "about 23300" "4.3 (2.9) GB, at least 0.44 (0.22) h and the labelling" resnet38
row cbst38_sp "46.2 (authors' README of CBST)" "about 23300" "4.3 (2.9) GB, at least 0.44 (0.22) h and the labelling" spatial_prior
