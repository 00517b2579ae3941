#!/usr/bin/env bash
# The tests that touch megatron-core, under another version of it, which needs Python 3.12 from 0.17 on.
#   bash scripts/test_versions.sh VERSION [pytest argument ...]      e.g. 0.19.2
# The environment `.venv-versions` (or $MEGATRON_FORK_VENV) is made as `environment.sh` says, and kept for the next version.
wanted="${1:?which megatron-core? e.g. bash scripts/test_versions.sh 0.19.2}"
shift
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHON="${PYTHON:-python3.12}"
export MEGATRON_FORK_VENV="${MEGATRON_FORK_VENV:-$here/../.venv-versions}"
source "$here/environment.sh"
python -m pip install --quiet --no-deps "megatron-core==$wanted" \
    || fail "megatron-core $wanted cannot be had for $(python --version)" "0.17 and later need Python 3.12: set PYTHON to one"
python -c 'from importlib.metadata import version; print("megatron-core", version("megatron-core"))'

# Models, their positions, attention, experts and head, and conversion from and to Hugging Face.
python -m pytest tests/models tests/vocab_parallel/test_lm_head_loss.py tests/checkpoint "$@"
# A run that is interrupted and repeats the uninterrupted one from its checkpoint.
python -m pytest tests/cli/test_interrupted_run.py -k "resume and not (sft or critic)" "$@"
# Every layout of two ranks, dense and with experts.
python -m pytest tests/distributed/test_every_layout.py -k "2-False or 2-True" "$@"
# The command line: a run, and the same run taken one step further.
runs="$(mktemp -d)"
trap 'rm -rf "$runs"' EXIT
short=(run.folder="$runs/short" sft.steps=20 rollout.max_rounds=2 evaluation.samples=1)
megatron-fork train examples/quickstart.yaml "${short[@]}" train.steps=2
megatron-fork train examples/quickstart.yaml "${short[@]}" train.steps=3
test -s "$runs/short/report.html"
