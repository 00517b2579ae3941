#!/usr/bin/env bash
# Makes the environment once, then style, types and every test.   bash scripts/test.sh [pytest argument ...]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
