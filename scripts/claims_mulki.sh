#!/usr/bin/env bash
# MulKI against related methods on the picture world's domains, both orders; each seed has its own images and batches.
# Prints the tables of docs/mulki.md. Finished runs are not repeated. A fine-tuning run takes about two minutes on one core.
# Usage: claims_mulki.sh ["seeds", default "1992 1996 1997"] ["arms to run, a regular expression", default all]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
results=${CLAIMS_PATH:-runs/claims_mulki}
seeds=${1:-1992 1996 1997}
only=${2:-.}

# the same steps, batches, rate and images for every method that trains weights; MulKI's are in models/config/mulki.yaml
tuned="--fitting_mode iters --n_iters 100 --batch_size 32 --lr 0.0002 --augment 0"
held="--reference_batch 32 --avg_freq 10"
arms=(
    "zero-shot|clip --use_templates 1"
    "sequential fine-tuning|finetune-clip $tuned"
    "LwF|lwf-clip $tuned"
    "LwF-VR|lwf-vr $tuned"
    "WiSE-FT|wise-ft $tuned"
    "ZSCL|zscl $tuned $held --reference tiny"
    "ZSCL, no l2|zscl $tuned $held --reference tiny --l2 0"
    "ZSCL, no l2, synthetic reference|zscl $tuned $held --reference synthetic --l2 0"
    "LwF, merged and taught by the first CLIP|lwf-clip $tuned --teacher pretrained --inter_alpha 0.8"
    "MulKI|mulki"
    "MulKI, both teach the past names|mulki --bank_teacher both"
    "MulKI, gate 1, no names of past tasks|mulki --kd_gate 1 --text_bank current"
    "MulKI, no gate, no names of past tasks|mulki --kd_gate 0 --text_bank current"
    "MulKI, pre-trained teacher alone|mulki --teachers pretrained"
    "MulKI, previous teacher alone|mulki --teachers previous"
    "MulKI, constant shares|mulki --teacher_weight const"
    "MulKI, relations kept on reference data|mulki --distill_data reference --reference tiny --teacher_weight const --text_bank current"
    "MulKI, the same on the tasks own data|mulki --rel it,ti --teacher_weight const --text_bank current --kd_gate 0"
    "MulKI, no eliciting|mulki --elicit off"
    "MulKI, inter-modal relations alone|mulki --rel it,ti,tv"
    "MulKI, intra-modal relations alone|mulki --rel vv,tt"
    "MulKI, weight connection alone|mulki --lambda_A 0 --lambda_E 0"
    "MulKI, no weight connection|mulki --avg_freq 0 --inter_alpha 1"
)
one() {
    IFS='|' read -r name flags <<<"$3"
    # shellcheck disable=SC2086
    ${SLOT:-} .venv/bin/python main.py --model $flags --dataset mtil-tiny --mtil_order "$2" --seed "$1" --picture_seed "$1" \
        --eval_future 1 --resume auto --non_verbose 1 --notes "$name" --results_path "$results" >/dev/null
}
export -f one
export results
for seed in $seeds; do
    for order in I II; do
        printf '%s\n' "${arms[@]}" | { grep -E "^[^|]*($only)" || true; } | tr '\n' '\0' |
            xargs -0 -r -n 1 -P "${JOBS:-2}" bash -c 'one "$@"' _ "$seed" "$order"
    done
done
.venv/bin/python scripts/claims_mulki.py "$results"
