#!/usr/bin/env bash
# From a fresh clone to a result: sets up, then runs zero-shot CLIP and CGIL on the picture world (seq-tiny), about a
# minute on one core after the install. Arguments go to both runs (for example --seed 1, --permute_classes 1).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

for model in clip cgil; do
    echo "== python main.py --model $model --dataset seq-tiny $*"
    .venv/bin/python main.py --model "$model" --dataset seq-tiny "$@"
    echo
done
echo "Each run left a folder under runs/seq-tiny/ (or your --results_path) with record.jsonl, every number as JSON lines,"
echo "and heat maps: class_il.png, the score of each task after each task, and all_names.png, the same among all names. Other methods and streams: .venv/bin/python main.py --list"
