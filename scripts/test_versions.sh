#!/usr/bin/env bash
# The parts that touch megatron-core, under another version of it than constraints/cpu.txt has: the newest allowed one, or VERSION.
# From 0.17 on it needs Python 3.12.
#   bash scripts/test_versions.sh [--short] [VERSION] [pytest argument ...]      e.g. 0.18.2
# --short only runs the command line: a run with a warm start and a checkpoint, and the same run taken one step further.
# The environment `.venv-versions` (or $MEGATRON_FORK_VENV) is made from constraints/newest.txt as `environment.sh` says, with
# torch as the package index has it, and kept for the next version.
short=false
if [ "${1:-}" = --short ]; then short=true && shift; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
newest="$(sed -n 's/^megatron-core==//p' "$here/../constraints/newest.txt")"
wanted="$newest"
if [[ "${1:-}" =~ ^[0-9] ]]; then wanted="$1" && shift; fi
export PYTHON="${PYTHON:-python3.12}" MEGATRON_FORK_CONSTRAINTS=newest MEGATRON_FORK_TORCH=any
export MEGATRON_FORK_VENV="${MEGATRON_FORK_VENV:-$here/../.venv-versions}"
source "$here/environment.sh"
if [ "$(python -c 'from importlib.metadata import version; print(version("megatron-core"))')" != "$wanted" ]; then
    python -m pip install --quiet --no-deps "megatron-core==$wanted" \
        || fail "megatron-core $wanted cannot be had for $(python --version)" "0.17 and later need Python 3.12: set PYTHON to one"
fi
echo "megatron-core $wanted, $(python --version)"

if ! $short; then
    # Models, their positions, attention, experts and head, and conversion from and to Hugging Face.
    python -m pytest tests/models tests/vocab_parallel/test_lm_head_loss.py tests/conversion tests/checkpoint "$@"
    # A run that is interrupted and repeats the uninterrupted one from its checkpoint.
    python -m pytest tests/cli/test_interrupted_run.py -k "resume and not (sft or critic)" "$@"
    # Every layout of two ranks, dense and with experts.
    EVERY_LAYOUT=1 python -m pytest tests/distributed/test_every_layout.py -k "2-False or 2-True" "$@"
fi
runs="$(mktemp -d)"
trap 'rm -rf "$runs"' EXIT
brief=(run.folder="$runs/short" sft.steps=20 rollout.max_rounds=2 evaluation.samples=1)
megatron-fork train examples/quickstart.yaml "${brief[@]}" train.steps=2
megatron-fork train examples/quickstart.yaml "${brief[@]}" train.steps=3 | tee "$runs/resumed"
grep -q "resuming .* after step 2 of 3" "$runs/resumed"
test -s "$runs/short/report.html"
