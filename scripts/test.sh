#!/usr/bin/env bash
# Makes the environment once, then style, types and every test.   bash scripts/test.sh [pytest argument ...]
# Two tests run at a time, each on one thread; another number with MEGATRON_FORK_TESTS_AT_ONCE. A skip that
# tests/support/expected_skips.py does not expect on this machine is a failure.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest --numprocesses "${MEGATRON_FORK_TESTS_AT_ONCE:-2}" --dist worksteal --no-unexpected-skips "$@"
