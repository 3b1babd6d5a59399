#!/usr/bin/env bash
# Sets up and runs the tests; arguments are passed to pytest (for example -k buffer, or -m slow).
# bash scripts/test.sh mutants [--only PATTERN] [--jobs N] runs every fault of tests/mutants: do the tests detect it?
# bash scripts/test.sh kills [--only NAME ...] kills every method at named moments: does it go on with the same numbers?
# bash scripts/test.sh slurm starts a Slurm of two nodes here (root; apt-get install slurm-wlm munge) and disturbs a sweep.
# bash scripts/test.sh ray does the same with a Ray of two nodes (root; .venv/bin/pip install ray), without a network.
# bash scripts/test.sh browser opens report pages in headless Chromium (installs Debian's package where it is missing).
# MAMMOTH_PATH=<checkout> bash scripts/test.sh mammoth [--only NAME ...] tries every method file of a
# checkout of Mammoth.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if [[ "${1:-}" == mammoth ]]; then
    shift
    exec .venv/bin/python scripts/try_mammoth.py "${MAMMOTH_PATH:?say where the checkout is: MAMMOTH_PATH=<folder>}" "$@"
fi
if [[ "${1:-}" == mutants ]]; then
    shift
    exec .venv/bin/python tests/mutants/run.py "$@"
fi
if [[ "${1:-}" == kills ]]; then
    shift
    exec .venv/bin/python tests/faults/run.py "$@"
fi
if [[ "${1:-}" == slurm ]]; then
    shift
    exec .venv/bin/python -m pytest -n 0 -m slurm -rs tests/test_sweep_slurm.py "$@"
fi
if [[ "${1:-}" == ray ]]; then # it asks the network for its own address: in a network namespace of its own
    shift
    exec unshare -n bash -c 'ip link set lo up && exec .venv/bin/python -m pytest -n 0 -m ray -rs tests/test_sweep_ray.py "$@"' _ "$@"
fi
if [[ "${1:-}" == browser ]]; then
    shift
    if ! command -v chromium chromium-browser google-chrome >/dev/null; then
        root=$([[ $EUID == 0 ]] || echo sudo)
        $root apt-get update && $root apt-get install -y --no-install-recommends chromium fonts-dejavu-core
    fi
    exec .venv/bin/python -m pytest -n 0 -m browser "$@"
fi
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
