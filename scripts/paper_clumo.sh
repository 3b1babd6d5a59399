#!/usr/bin/env bash
# CluMo on CLOVE-scene and CLOVE-function: six task orders each, then ablations on the default order. Needs the data (the
# error of a run says where it goes), BLIP's weights and, in practice, a GPU. Finished runs are not repeated.
# BLIP trained on VQA v2 replaces the paper's ALBEF, which was also trained on it, and stays frozen: a new fusion that is
# trained only on the first task cannot answer the others (docs/clumo.md). er and joint do not have such a network here.
# The paper's own numbers are not known to this project; docs/clumo.md says which of ours were run.
# Usage: paper_clumo.sh [streams] [base_path] [weights]
# Example: paper_clumo.sh "clove-function" /data "/data/blip-vqa-base"
# weights: a folder, or a Hub name whose files are cached
set -euo pipefail
cd "$(dirname "$0")/.."
streams=${1:-clove-scene clove-function}
for stream in $streams; do
    case $stream in clove-scene | clove-function) ;; *)
        echo "error: unknown stream '$stream': clove-scene, clove-function, or both in quotes" >&2
        exit 2 ;;
    esac
done
bash scripts/setup.sh
base=${2:-./data}
results=runs/paper_clumo
declare -A orders=(
    [clove-scene]="abcdef bdfcae beacfd beadcf bedfca ecdfab"
    [clove-function]="oarlks roslak rklsao rsolak lkosra kaorls"
)
weights=${3:-Salesforce/blip-vqa-base}
trained="--batch_size 32 --n_epochs 5 --vqa_backbone blip"
alone="--model clumo --prompt_len 0 --general_prompt_len 0"

run() { # stream, order, name of the row, flags
    local stream=$1 order=$2 name=$3
    shift 3
    # shellcheck disable=SC2086
    .venv/bin/python main.py --dataset "$stream" --clove_order "$order" --seed 42 --base_path "$base" --resume auto \
        --notes "$name" --results_path "$results/$stream/$order" $trained --blip_weights "$weights" "$@"
}
for stream in $streams; do
    for order in ${orders[$stream]}; do
        run "$stream" "$order" "CluMo" --model clumo
        # shellcheck disable=SC2086
        run "$stream" "$order" "sequential fine-tuning" $alone --fusion_train always --kd_weight 0
        # shellcheck disable=SC2086
        run "$stream" "$order" "head alone" $alone
        for model in l2p dualprompt s-prompts; do run "$stream" "$order" "$model" --model "$model" --prompt_range 0.1; done
    done
    first=${orders[$stream]%% *}
    for keys in "1 1" "9 1" "1 9" "5 5"; do
        run "$stream" "$first" "CluMo, keys $keys" --model clumo --n_visual_keys "${keys% *}" --n_text_keys "${keys#* }"
    done
    for length in 5 30; do run "$stream" "$first" "CluMo, prompts of $length" --model clumo --prompt_len "$length"; done
    for weight in 0 0.1 3; do run "$stream" "$first" "CluMo, kd $weight" --model clumo --kd_weight "$weight"; done
    run "$stream" "$first" "CluMo, nearest of all keys" --model clumo --route_rule nearest
    run "$stream" "$first" "CluMo, head of the routed pool" --model clumo --head routed --kd_weight 0
    run "$stream" "$first" "CluMo, no general prompt" --model clumo --general_prompt_len 0
    run "$stream" "$first" "CluMo, random prompts" --model clumo --prompt_train frozen
    run "$stream" "$first" "CluMo, random keys" --model clumo --keys random
    for order in ${orders[$stream]}; do
        echo "== $stream $order"
        .venv/bin/python scripts/report.py "$results/$stream/$order"
    done
done
