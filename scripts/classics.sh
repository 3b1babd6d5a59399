#!/usr/bin/env bash
# Every classic on the picture world (scripts/grids/classics.yaml); writes the table of docs/classics.md. Finished runs
# are not repeated.
# Usage: classics.sh [seeds]; MODELS="er der" chooses methods, JOBS=1 runs one at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
results=${CLASSICS_PATH:-runs/classics}
models=${MODELS:-.*}
.venv/bin/python scripts/sweep.py scripts/grids/classics.yaml --jobs "${JOBS:-2}" --results_path "$results" \
    --only="--model (${models// /|}) " ${1:+--seeds "$@"}
.venv/bin/python scripts/classics_table.py "$results" --write docs/classics.md
