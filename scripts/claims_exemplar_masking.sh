#!/usr/bin/env bash
# ExemplarMasking against full exemplars, random masks and compressed images at equal bytes, on the picture world's
# images with captions. Every seed has its own images and initialization; all arms train three epochs per task.
# Prints a table of arms, one of claims (paired over seeds, 95 % intervals), and draws accuracy against bytes
# (docs/img/exemplar_masking.png). Finished runs are not repeated.
# Usage: claims_exemplar_masking.sh [seeds, default "0 1 2"] [phases, default "5 10"]
#        [groups, default "claims curve more"]
# claims: one arm per claim and alternative. curve: other budgets. more: other settings. The last two with 5 phases alone.
# LAUNCH is prepended to each run; JOBS of them run at a time (default 2); ARMS is a pattern on the names of arms;
# MORE are flags added to every run (for a try: "--stop_after 1"); PLOT is where the plot goes.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
export results=${CLAIMS_PATH:-runs/claims_exemplar_masking} launch=${LAUNCH:-} more_flags=${MORE:-}
seeds=${1:-0 1 2}
phases=${2:-5 10}
groups=${3:-claims curve more}

em="exemplar-masking --buffer_bytes_per_class"
plain="--exemplar_aug none" # of exemplars; the default fills holes with patches that new pictures' masks drop
full="--exemplar_codec raw $plain"
chance="--mask_rule random --text_rule random"
# a reservoir of 694700 bytes: 100 full samples, five for each of 20 classes
er="er --backbone clip-fused --optimizer adamw --lr 0.001 --buffer_size 100000 --buffer_bytes 694700"
claims=(
    "masked 5x|$em 5x"
    "full 5x|$em 5x $full"
    "random mask 5x|$em 5x $chance"
    "class words alone 5x|$em 5x --text_rule class_only"
    "masked, 5 exemplars|$em 5x --budget_unit exemplars"
    "masked, not augmented 5x|$em 5x $plain"
    "random mask, not augmented 5x|$em 5x $chance $plain"
    "masked + swap 5x|$em 5x --exemplar_aug swap"
    "box 5x|$em 5x --exemplar_codec box $plain"
    "jpeg 5x|$em 5x --exemplar_codec jpeg $plain"
    "er, full|$er --exemplar_codec uint8"
    "er, masked|$er --exemplar_codec masked"
    "l2p|l2p --fusion_train never --lr 0.024 --batch_size 32 --prompt_range 0.1"
)
curve=()
for worth in 1 3 7 10; do
    curve+=("masked ${worth}x|$em ${worth}x" "full ${worth}x|$em ${worth}x $full")
    curve+=("random mask ${worth}x|$em ${worth}x $chance" "box ${worth}x|$em ${worth}x --exemplar_codec box $plain")
    curve+=("jpeg ${worth}x|$em ${worth}x --exemplar_codec jpeg $plain")
done
more=(
    "full + swap 5x|$em 5x --exemplar_codec raw --exemplar_aug swap"
    "random words, not augmented 5x|$em 5x $plain --text_rule random"
    "random patches, not augmented 5x|$em 5x $plain --mask_rule random"
    "tower attention 5x|$em 5x --attn_source tower"
    "full fine-tuning 5x|$em 5x --tune full --lr 0.0001"
    "image alone 5x|$em 5x --look_at image"
    "text alone 5x|$em 5x --look_at text"
    # a full sample is a JPEG of quality 95 here, and the masked ones hold their patches as JPEG of that quality
    "full, of JPEG bytes|$em 5x $full --budget_unit bytes_jpeg"
    "masked, of JPEG bytes|$em 5x --budget_unit bytes_jpeg"
    "jpeg 50, of JPEG bytes|$em 5x --exemplar_codec jpeg $plain --budget_unit bytes_jpeg"
)
one() {
    local seed=$1 phase=$2
    IFS='|' read -r name flags <<<"$3"
    # shellcheck disable=SC2086
    $launch .venv/bin/python main.py --model $flags --dataset mm-tiny --phases "$phase" --seed "$seed" --picture_seed "$seed" \
        --n_epochs 3 --resume auto --non_verbose 1 --device cpu --notes "$name" --results_path "$results/$phase" $more_flags >/dev/null
}
export -f one
for group in $groups; do
    declare -n arms=$group
    for seed in $seeds; do
        for phase in $phases; do
            [[ $group == claims || $phase == 5 ]] || continue
            for arm in "${arms[@]}"; do
                [[ ${arm%%|*} =~ ${ARMS:-.} ]] || continue
                printf '%s\0' "$seed" "$phase" "$arm"
            done
        done
    done
done | xargs -0 -r -n 3 -P "${JOBS:-2}" bash -c 'one "$@"' _
for phase in $phases; do
    echo "== $phase phases"
    drawn=()
    [[ $phase == 5 ]] && drawn=(--plot "${PLOT:-docs/img/exemplar_masking.png}")
    .venv/bin/python scripts/claims_exemplar_masking.py "$results/$phase" "${drawn[@]}"
done
