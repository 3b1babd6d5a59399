#!/usr/bin/env bash
# Every classic on the picture world with CLIP's image tower: each seed has its own images, class order and
# initialization. Writes the table of docs/classics.md. Finished runs are not repeated.
# Usage: classics.sh [seeds, default 1992 1996 1997]; MODELS="er der" chooses methods, JOBS=1 runs one at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
results=${CLASSICS_PATH:-runs/classics}
seeds=${*:-1992 1996 1997}
models=${MODELS:-sgd joint er derpp icarl er_ace der xder rpc fdr gdumb gss hal mer lwf ewc_on si agem agem_r gem lucir bic}

one() {
    .venv/bin/python main.py --model "$2" --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --seed "$1" --picture_seed "$1" --permute_classes 1 --resume auto --non_verbose 1 \
        --results_path "$results" >/dev/null
}
export -f one
export results
for seed in $seeds; do
    # shellcheck disable=SC2086
    printf '%s\n' $models | xargs -n 1 -P "${JOBS:-2}" bash -c 'one "$@"' _ "$seed"
done
.venv/bin/python scripts/classics_table.py "$results" --write docs/classics.md
