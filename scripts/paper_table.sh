#!/usr/bin/env bash
# The table of a protocol: every data set x method x seed, then the report with published numbers beside ours. Finished
# runs are not repeated; unfinished ones are resumed. `python main.py --list protocols` shows the protocols.
# Usage: paper_table.sh PROTOCOL [data sets] [methods] [seeds] [base_path] [further flags]
#   paper_table.sh tiny                                         offline, a few minutes on a CPU
#   paper_table.sh c3box/bhalf "seq-cifar100 seq-aircraft" "clip ncm ridge" "1" /data
# The results are in runs/paper_table/PROTOCOL, or in $RESULTS.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
protocol=${1:?give a protocol, for example tiny; python main.py --list protocols shows all}
datasets=${2:-$($python -m utils.cli.protocols "$protocol" datasets)}
models=${3:-$($python -m utils.cli.protocols "$protocol" models)}
seeds=${4:-$($python -m utils.cli.protocols "$protocol" seeds)}
base=${5:-./data}
results=${RESULTS:-runs/paper_table/$protocol}
for dataset in $datasets; do
    for model in $models; do
        for seed in $seeds; do
            echo "== $protocol: $dataset, $model, seed $seed"
            $python main.py --protocol "$protocol" --dataset "$dataset" --model "$model" --seed "$seed" \
                --base_path "$base" --results_path "$results" --resume auto --non_verbose 1 "${@:6}"
        done
    done
done
$python scripts/report.py "$results"
