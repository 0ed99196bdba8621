# What the recipes share: each sets SOURCE and TARGET and sources this. The variables and flags: docs/recipes.md.
set -euo pipefail
ROOT=$(realpath --relative-to=. "$(dirname "${BASH_SOURCE[0]}")/../..")
PYTHON=${PYTHON:-python}
LAUNCH=${LAUNCH:-$PYTHON}
RUNS=${RUNS:-snapshots/recipes/$(basename "$0" .sh)}
WEIGHTS=${WEIGHTS:-}
SOURCE_WEIGHTS=${SOURCE_WEIGHTS:-}
MINI=${MINI:-}
if [ -n "$MINI" ]; then
    GTA5=$MINI/GTA5 SYNTHIA=$MINI/SYNTHIA CITYSCAPES=$MINI/Cityscapes CROSSCITY=$MINI/NTHU_Datasets
fi

DRY_RUN='' FAST=() ROWS=()
KNOWN=" $(sed -n 's/^row \([^ ]*\) .*/\1/p' "$0" | paste -sd ' ' -) "
for word in "$@"; do
    case $word in
        --dry-run) DRY_RUN=yes ;;
        --fast) FAST=(--fast) ;;
        -*) echo "$(basename "$0"): error: unknown flag $word; it takes --fast, --dry-run and names of rows" >&2; exit 2 ;;
        *)
            [[ $KNOWN == *" $word "* ]] || { echo "$(basename "$0"): error: no row $word; it has$KNOWN" >&2; exit 2; }
            ROWS+=("$word")
            ;;
    esac
done

# Flags of the weights that the first training starts from.
START=()
[ "$WEIGHTS" != torchvision ] || START=(--restore-from torchvision:ResNet101_Weights.IMAGENET1K_V1)
[ -z "${WEIGHTS#torchvision}" ] || START=(--restore-from "$WEIGHTS")
[ -z "$MINI" ] || START=(--restore-from none)

# Published files carry the beginning of their SHA-256 in their names.
if [ -f "$WEIGHTS" ]; then
    digest=$(sha256sum < "$WEIGHTS" | cut -c 1-64)
    named=$(basename "$WEIGHTS" | sed -n 's/.*-\([0-9a-f]\{8\}\)\.[a-z]*$/\1/p')
    echo "$WEIGHTS: $(wc -c < "$WEIGHTS") bytes, SHA-256 $digest"
    if [[ $digest != "$named"* ]]; then
        echo "$(basename "$0"): error: $WEIGHTS is damaged or another file: its SHA-256 does not begin with $named" >&2
        exit 1
    fi
fi

# row NAME PUBLISHED STEPS COST COMMAND...: a row of a published table, trained and scored by COMMAND if it is wanted. COST is
# modelled (docs/benchmarks.md), for the row's own training: as published, and (in brackets) with --fast.
row() {
    NAME=$1
    [ ${#ROWS[@]} -eq 0 ] || [[ " ${ROWS[*]} " == *" $NAME "* ]] || return 0
    echo "== $NAME: published $2; $3 steps; modelled for an A100: $4"
    "${@:5}"
    echo "== $NAME: published $2"
}

# train FILE SCRIPT FLAG...: train in the folder of RUNS that FILE begins with, until FILE is there.
train() {
    local folder=$RUNS/${1%%/*} script=$2
    local last=$RUNS/$1 data=(--source "$SOURCE" --data-dir "$(root "$SOURCE")")
    [ -z "$MINI" ] || last=$folder/small_run_finished
    [ ! -e "$last" ] || { echo "finished: $folder"; return; }
    [ "$script" = train_source.py ] || data+=(--target "$TARGET" --data-dir-target "$(root "$TARGET")")
    # Of two flags of one name the last counts.
    run $LAUNCH "$ROOT/$script" "${data[@]}" "${@:3}" $(network "${@:2}") $(small "${@:2}") \
        --snapshot-dir "$folder" --resume auto "${FAST[@]}"
    [ -z "$MINI" ] || [ -n "$DRY_RUN" ] || touch "$last"
}

# score FILE FLAG...: the final figures, on the target's val split.
score() {
    run "$PYTHON" "$ROOT/evaluate_cityscapes.py" --restore-from "$(weights "$1")" --dataset "$TARGET" \
        --data-dir "$(root "$TARGET")" "${@:2}" --save none --json "$RUNS/$NAME.json" \
        ${MINI:+--device cpu --num-workers 0 $([[ " $* " == *" --protocol cbst "* ]] && echo --test-scales 90 || echo --input-size 64,32)}
}

# weights FILE: its path; of a small run, which ends at another step, that of the newest file.
weights() {
    if [ -z "$MINI" ] || [ -n "$DRY_RUN" ]; then
        echo "$RUNS/$1"
    else
        find "$RUNS/${1%%/*}" -name '*.pth' ! -name 'state*' ! -name '*_D*' -exec ls -t {} + | sed -n 1p
    fi
}

# run COMMAND...: print it, and run it unless --dry-run.
run() {
    printf '+%s\n' "$(printf ' %q' "$@")"
    [ -n "$DRY_RUN" ] || "$@"
}

root() {
    case $1 in
        gta5) echo "${GTA5:-data/GTA5}" ;;
        synthia) echo "${SYNTHIA:-data/SYNTHIA}" ;;
        cityscapes) echo "${CITYSCAPES:-data/Cityscapes}" ;;
        crosscity) echo "${CROSSCITY:-data/NTHU_Datasets}" ;;
    esac
}

# network SCRIPT FLAG...: torchvision's weights need a network of their kind, and a small run a small one (there is none of
# ResNet-38).
network() {
    case "${MINI:+mini} $WEIGHTS $*" in
        *" ResNet38 "*) ;;
        "mini "*train_clan.py*) echo --model MiniResNet18Twin ;;
        "mini "*) echo --model MiniResNet18 ;;
        *train_fada.py*) ;;
        " torchvision "*) echo --model ResNet101 ;;
    esac
}

# small SCRIPT FLAG...: what makes a run on the mini data short.
small() {
    [ -n "$MINI" ] || return 0
    echo --device cpu --num-workers 0
    [ "$1" = train_source.py ] || echo --input-size-target 64,32
    case "$*" in
        *train_cbst.py*" ResNet38 "*) echo --input-size 60 --test-scales 90 --num-rounds 1 --epochs-per-round 1 ;;
        *train_cbst.py*) echo --input-size 64,32 --num-rounds 2 --epochs-per-round 1 ;;
        *train_dacs.py*--rare-class-sampling*) echo --input-size 64,32 --num-steps 2 --num-steps-stop 2 --rare-class-pixels 10 ;;
        *train_fada.py*) echo --input-size 64,32 --input-size-test 64,32 --num-steps 2 --num-steps-stop 2 --batch-size 2 ;;
        *) echo --input-size 64,32 --num-steps 2 --num-steps-stop 2 ;;
    esac
}
