#!/usr/bin/env bash
# Creates .venv with the pinned packages; does nothing if it exists and requirements.txt has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=""
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.10 or newer with the venv module found;" \
        "install one (Debian: apt-get install python3-venv) or set PYTHON" >&2
    exit 2
fi

stamp="$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")') $(cksum <requirements.txt)"
if [ -f .venv/stamp ] && [ "$(cat .venv/stamp)" = "$stamp" ]; then
    exit 0
fi
echo "setting up .venv (about 5 GB, two to five minutes) ..." >&2
[ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
echo "$stamp" >.venv/stamp
