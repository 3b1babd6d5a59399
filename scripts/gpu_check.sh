#!/usr/bin/env bash
# All that has to be known on a GPU, in at most 8 minutes on one card: the tests that need one, speed, share of time in
# kernels, peak memory. Downloads and installs nothing; PYTHON=... chooses another Python than .venv's.
# bash scripts/gpu_check.sh --device cpu --tiny   tries the script itself, without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[[ -x $python ]] || python=python3
exec "${PYTHON:-$python}" scripts/gpu_check.py "$@"
