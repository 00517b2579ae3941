#!/usr/bin/env bash
# Builds wheel and sdist into dist/, installs them and uses them from outside the checkout, as one does who has only the package.
#   bash scripts/test_package.sh             every supported Python that is here, in fresh environments; a few minutes each
#   bash scripts/test_package.sh --short     the wheel alone, beside the packages of .venv: less than a minute
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

build() {
    python -m venv "$work/build"
    "$work/build/bin/pip" install --quiet build
    rm -rf build "$work/dist"
    "$work/build/bin/python" -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" && false; }
    mkdir -p dist
    cp "$work"/dist/* dist/
}

# use ENVIRONMENT NAME: train, resume, plan and report by a recipe's name, in an empty folder.
use() (
    mkdir -p "$work/$2" && cd "$work/$2"
    export PATH="$1/bin:$PATH" PYTHONPATH='' OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    python - "$1" <<'PYTHON'
import sys
import megatron_fork
assert megatron_fork.__file__.startswith(sys.argv[1]), f"{megatron_fork.__file__} is not the installed package"
PYTHON
    short=(run.folder=run sft.steps=20 rollout.max_rounds=2 evaluation.samples=1)
    megatron-fork train quickstart "${short[@]}" train.steps=1
    megatron-fork train quickstart "${short[@]}" train.steps=2 | tee resumed
    grep -q "resuming .* after step 1 of 2" resumed
    megatron-fork analyze run
    test -s run/report.html
    megatron-fork plan qwen3-32b/top20_29k >plan
    grep -q "how many GPUs" plan
    megatron-fork launch qwen3-8b/top20 --dry-run >job
    grep -q '^#SBATCH' job
    if megatron-fork train quikstart 2>error; then exit 1; fi
    grep -q quickstart error
    echo "$2: works from outside the checkout, $(python --version)"
)

build
if [ "${1:-}" = --short ]; then
    python -m venv "$work/beside"
    packages="$("$work/beside/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$packages/beside.pth"
    "$work/beside/bin/pip" install --quiet --no-deps --no-index "$work"/dist/*.whl
    use "$work/beside" wheel
    exit
fi
tried=0
for version in 3.11 3.12; do
    python="$(PYTHON="python$version" find_python 2>/dev/null)" || { echo "not tested: Python $version, which is not here" && continue; }
    for package in "$work"/dist/*; do
        rm -rf "$work/fresh"
        "$python" -m venv "$work/fresh"
        environment="$work/fresh" install_torch_for_cpu
        "$work/fresh/bin/pip" install --quiet --constraint "$constraints" "$package"
        use "$work/fresh" "$(basename "$package")-$version"
        tried=$((tried + 1))
    done
done
[ "$tried" -gt 0 ]
