#!/usr/bin/env bash
# What only a GPU can show, in one command, on a machine with a GPU and torch: docs/gpu_check.md.
#   bash scripts/gpu_check.sh [--minutes 8] [--out FOLDER] [--missing] [--smoke] [--wheels FOLDER] [PART ...]      --help says more
# Parts run with $PYTHON, or with the .venv of this folder, or with python3.
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$project/.venv/bin/python"
    if [ ! -x "$PYTHON" ]; then PYTHON=python3; fi
fi
export PYTHON
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $PYTHON is not Python 3.11 or newer" >&2
    echo "  set PYTHON to one that is, and that has torch" >&2
    exit 2
fi
exec "$PYTHON" "$project/tools/check_gpu.py" "$@"
