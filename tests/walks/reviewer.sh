#!/usr/bin/env bash
# A reviewer: are the numbers of three records those that their commands give again?
source "$(dirname "$0")/common.sh"
"$python" -m tests.fabricate_own "$place/symbols"
run ncm seq-tiny --stop_after 2
run sgd seq-tiny --lr 0.05 --n_epochs 1 --stop_after 0 --backbone resnet18 --num_filters 4
run ncm seq-folder --folder_path "$place/symbols" --n_tasks 2 --image_size 48 --clip_backbone tiny
for one in "seq-tiny ncm" "seq-tiny sgd" "seq-folder ncm"; do
    # shellcheck disable=SC2086
    "$python" scripts/reproduce.py "$(record $one)" >"$place/said"
    says "scores are equal"
done
code=0
"$python" scripts/reproduce.py "$(record seq-tiny sgd)" --lr 0.2 >"$place/said" || code=$?
[[ $code == 1 ]] && says "differs: "
grep -q '"sha256"' "$(record seq-tiny ncm)"
[[ ! -e "$(dirname "$(record seq-tiny ncm)")/ckpt" ]] || { echo "saves of a finished run are kept"; exit 1; }
echo "reviewer: ok"
