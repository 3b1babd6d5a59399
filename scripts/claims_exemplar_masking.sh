#!/usr/bin/env bash
# ExemplarMasking against full exemplars, random masks and compressed pictures at equal bytes, on the picture world's
# pictures with captions. Every seed has pictures and initialisation of its own. Prints a table and draws accuracy against
# bytes (docs/img/exemplar_masking.png). Runs that are there already are not repeated.
# Usage: claims_exemplar_masking.sh [seeds, default "0 1 2"] [phases, default "5 10"] [arms: a pattern on their names]
# LAUNCH is put in front of each run; JOBS of them run at a time (default 2).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
export results=${CLAIMS_PATH:-runs/claims_exemplar_masking} launch=${LAUNCH:-}
seeds=${1:-0 1 2}
phases=${2:-5 10}
pattern=${3:-.}

em="exemplar-masking --buffer_bytes_per_class"
arms=(
    "masked + swap 5x|$em 5x"
    "masked 5x|$em 5x --exemplar_aug none"
    "full 5x|$em 5x --exemplar_codec raw --exemplar_aug none"
    "full + swap 5x|$em 5x --exemplar_codec raw"
    "random mask 5x|$em 5x --mask_rule random --text_rule random --exemplar_aug none"
    "box 5x|$em 5x --exemplar_codec box --exemplar_aug none"
    "jpeg 5x|$em 5x --budget_unit bytes_jpeg --exemplar_codec jpeg --exemplar_aug none"
    "class words alone 5x|$em 5x --exemplar_aug none --text_rule class_only"
    "tower attention 5x|$em 5x --exemplar_aug none --attn_source tower"
    "full fine-tuning 5x|$em 5x --tune full --lr 0.0001"
    "image alone 5x|$em 5x --look_at image --exemplar_aug none"
    "text alone 5x|$em 5x --look_at text --exemplar_aug none"
)
for worth in 1 3 7 10; do
    arms+=("masked + swap ${worth}x|$em ${worth}x" "full ${worth}x|$em ${worth}x --exemplar_codec raw --exemplar_aug none")
    arms+=("random mask ${worth}x|$em ${worth}x --mask_rule random --text_rule random --exemplar_aug none")
    arms+=("box ${worth}x|$em ${worth}x --exemplar_codec box --exemplar_aug none")
done
one() {
    local seed=$1 phase=$2
    IFS='|' read -r name flags <<<"$3"
    # shellcheck disable=SC2086
    $launch .venv/bin/python main.py --model $flags --dataset mm-tiny --phases "$phase" --seed "$seed" --picture_seed "$seed" \
        --resume auto --non_verbose 1 --device cpu --notes "$name" --results_path "$results/$phase" >/dev/null
}
export -f one
for arm in "${arms[@]}"; do
    [[ ${arm%%|*} =~ $pattern ]] || continue
    for seed in $seeds; do
        for phase in $phases; do printf '%s\0' "$seed" "$phase" "$arm"; done
    done
done | xargs -0 -n 3 -P "${JOBS:-2}" bash -c 'one "$@"' _
for phase in $phases; do
    echo "== $phase phases"
    .venv/bin/python scripts/claims_exemplar_masking.py "$results/$phase" --plot "docs/img/exemplar_masking_$phase.png"
done
