#!/usr/bin/env bash
# From nothing to a learning curve: makes the environment once, trains examples/quickstart.yaml, says where the report lies.
#   bash scripts/quickstart.sh [override ...]      e.g. selection.tokens=all seed=1
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec megatron-fork train examples/quickstart.yaml "$@"
