#!/usr/bin/env bash
# The first comparison, by commands alone: top 20 % of the tokens against a random 20 %, from the same warm start, evaluated on prompts
# that neither has seen, with the paired difference and its interval. Five minutes on two cores.
#   bash examples/scripts/first_comparison.sh FOLDER [override ...]
set -euo pipefail
folder="${1:?a folder for the two runs}"
shift
for tokens in top random; do
    megatron-fork train quickstart run.folder="$folder/$tokens" selection.tokens="$tokens" "$@"
    megatron-fork evaluate "$folder/$tokens" --samples 4 --out "$folder/$tokens-evaluated"
done
megatron-fork compare "$folder/random-evaluated" "$folder/top-evaluated"
megatron-fork analyze report "$folder/top" --out "$folder/top.html"
