#!/usr/bin/env bash
# CGIL against related methods on the picture world: three seeds, each with its own images, class order and
# initialization. Prints the table of docs/cgil.md. Finished runs are not repeated. About ten minutes on two cores.
# Usage: claims_cgil.sh [seeds, default "1992 1996 1997"]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1
results=${CLAIMS_PATH:-runs/claims_cgil}
seeds=${1:-1992 1996 1997}

arms=(
    "zero-shot|clip --eval_future 1"
    "CGIL, VAE|cgil"
    "CGIL, full Gaussian|cgil --g_models full_gauss"
    "CGIL, mixture of 5 diagonal Gaussians|cgil --g_models mog"
    "CGIL, diagonal Gaussian|cgil --g_models gauss"
    "CGIL, V_c only|cgil --combo_context 0"
    "CGIL, g(t_c) only|cgil --combo_context 0 --generated_context 1"
    "CGIL, level held, generated unseen keys|cgil --level_weight 0.1 --future_keys generated"
    "sequential CoOp, 30 epochs|coop --eval_future 1"
    "sequential CoOp, 2 epochs|coop --n_epochs 2 --eval_future 1"
    "joint prompt tuning (class-specific CoOp)|coop --joint 1 --csc 1"
    "SLDA|slda"
    "joint linear probe|linear-probe --joint 1"
)
one() {
    IFS='|' read -r name flags <<<"$2"
    # shellcheck disable=SC2086
    .venv/bin/python main.py --model $flags --dataset seq-tiny --seed "$1" --picture_seed "$1" --permute_classes 1 \
        --resume auto --non_verbose 1 --notes "$name" --results_path "$results" >/dev/null
}
export -f one
export results
for seed in $seeds; do
    printf '%s\0' "${arms[@]}" | xargs -0 -n 1 -P "${JOBS:-2}" bash -c 'one "$@"' _ "$seed"
done
.venv/bin/python scripts/claims.py "$results" --reference "CGIL, VAE"
