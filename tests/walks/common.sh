# Sourced by the walks: a place of their own, and short words for what must hold.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONPATH=.
python="${PYTHON:-.venv/bin/python}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
common=(--base_path "$place/data" --results_path "$place/runs" --non_verbose 1 --device "${DEVICE:-cpu}")

run() { # run METHOD STREAM FLAGS..: must succeed; its output is in $place/said
    echo "== main.py --model $1 --dataset $2 ${*:3}"
    "$python" main.py --model "$1" --dataset "$2" "${@:3}" "${common[@]}" >"$place/said" 2>&1 || { cat "$place/said"; exit 1; }
}

refused() { # refused METHOD STREAM FLAGS..: must end with exit code 2 and error lines alone
    echo "== refused: main.py --model $1 --dataset $2 ${*:3}"
    local code=0
    "$python" main.py --model "$1" --dataset "$2" "${@:3}" "${common[@]}" >"$place/said" 2>&1 || code=$?
    [[ $code == 2 ]] && ! grep -q Traceback "$place/said" || { cat "$place/said"; exit 1; }
}

says() { # says TEXT: the last command wrote it
    grep -qF -- "$1" "$place/said" || { echo "missing: $1"; cat "$place/said"; exit 1; }
}

record() { # record STREAM METHOD: the newest record
    find "$place/runs/$1/$2" -name record.jsonl | sort | tail -1
}
