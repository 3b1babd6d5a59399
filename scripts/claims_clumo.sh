#!/usr/bin/env bash
# CluMo against related methods and its own ablations on the picture world's question streams. Every seed has its own
# images, task order and initialization; all arms share the frozen towers and the pre-trained fusion. Prints the tables
# of docs/clumo.md. Finished runs are not repeated.
# Usage: claims_clumo.sh [seeds, default "0 1 2"] [streams] [arms: a pattern on their names, default all]
# LAUNCH is put in front of each run; JOBS of them run at a time (default 2).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
export results=${CLAIMS_PATH:-runs/claims_clumo} launch=${LAUNCH:-}
seeds=${1:-0 1 2}
streams=${2:-clove-tiny-function clove-tiny-scene}
pattern=${3:-.}

tuned="--backbone clip-fusion --optimizer adamw --lr 0.001 --n_epochs 3"
arms=(
    "CluMo|clumo"
    "CluMo, head of the routed pool|clumo --head routed --kd_weight 0"
    "fusion and head tuned task by task|sgd $tuned"
    "the same with replay of 120 samples (er)|er --buffer_size 120 $tuned"
    "the same on all tasks at once (joint)|joint $tuned"
    "l2p|l2p"
    "l2p, query of picture and question|l2p --query both"
    "dualprompt|dualprompt"
    "dualprompt, query of picture and question|dualprompt --query both"
    "s-prompts|s-prompts"
    "s-prompts, query of picture and question|s-prompts --query both"
    "CluMo, 1 x 1 keys|clumo --n_visual_keys 1 --n_text_keys 1"
    "CluMo, visual keys alone (9 x 1)|clumo --n_visual_keys 9 --n_text_keys 1"
    "CluMo, textual keys alone (1 x 9)|clumo --n_visual_keys 1 --n_text_keys 9"
    "CluMo, random prompts left as they are|clumo --prompt_train frozen"
    "CluMo, no distillation|clumo --kd_weight 0"
    "CluMo, no general prompt|clumo --general_prompt_len 0"
)
one() {
    local seed=$1 stream=$2 order
    IFS='|' read -r name flags <<<"$3"
    order=$(.venv/bin/python -c "import random; o = list(range(6)); random.Random($seed).shuffle(o); print(*o, sep=',')")
    # shellcheck disable=SC2086
    $launch .venv/bin/python main.py --model $flags --dataset "$stream" --seed "$seed" --picture_seed "$seed" \
        --custom_task_order "$order" --resume auto --non_verbose 1 --device cpu --notes "$name" --results_path "$results/$stream" >/dev/null
}
export -f one
for arm in "${arms[@]}"; do
    [[ ${arm%%|*} =~ $pattern ]] || continue
    for seed in $seeds; do
        for stream in $streams; do printf '%s\0' "$seed" "$stream" "$arm"; done
    done
done | xargs -0 -n 3 -P "${JOBS:-2}" bash -c 'one "$@"' _
for stream in $streams; do
    echo "== $stream"
    .venv/bin/python scripts/claims.py "$results/$stream" --reference CluMo --vqa
done
