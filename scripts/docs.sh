#!/usr/bin/env bash
# Builds the documentation into site/ and serves it: docs.sh [build|serve] (default: serve, on http://127.0.0.1:8000).
# It has an environment of its own (.venv-docs, MkDocs Material), which is made at the first call. A warning is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
action=${1:-serve}
case "$action" in build | serve) ;; *) echo "error: docs.sh takes build or serve, not '$action'" >&2 && exit 2 ;; esac
if ! .venv-docs/bin/python -c "import material" 2>/dev/null; then
    ${PYTHON:-python3} -m venv --clear .venv-docs
    .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.6,<10' 'mkdocs>=1.6,<2'
fi
export NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
if [ "$action" = build ]; then
    exec .venv-docs/bin/mkdocs build --strict
fi
exec .venv-docs/bin/mkdocs serve --strict --dev-addr 127.0.0.1:8000
