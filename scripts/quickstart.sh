#!/usr/bin/env bash
# From a fresh clone to a result: sets up, then runs zero-shot CLIP and CGIL on the picture world (seq-tiny), about a
# minute on one core after the install, and writes a report page. Arguments are passed to both runs (for example
# --seed 1, --permute_classes 1).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

for model in clip cgil; do
    echo "== python main.py --model $model --dataset seq-tiny $*"
    .venv/bin/python main.py --model "$model" --dataset seq-tiny "$@"
    echo
done
results=runs
for ((i = 1; i <= $#; i++)); do
    case "${!i}" in
        --results_path) j=$((i + 1)) results=${!j} ;;
        --results_path=*) results=${!i#*=} ;;
    esac
done
.venv/bin/python scripts/report.py "$results"
echo "Each run has a folder with record.jsonl (every number as JSON lines) and heat maps; the report shows them all."
echo "Other methods and streams: .venv/bin/python main.py --list"
