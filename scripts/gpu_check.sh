#!/usr/bin/env bash
# What only a GPU can show, in at most five minutes: tests that have a GPU form, the quickstart with checkpoint, kill and resume in
# float32 and bfloat16, and the LM head at Qwen3-8B's shape against its floor and TRL's fused head.
#   bash scripts/gpu_check.sh [--smoke] [OUT_FOLDER [PART ...]]      parts: machine quickstart-fp32 quickstart-bf16 lm-head tests
# Each part has a limit of its own and adds a line to OUT_FOLDER/results.jsonl when it ends, so that what is done stays whatever
# stops the rest. --smoke: the same parts at a size for a CPU. Where $PYTHON (python3) has megatron-core and torch it is used as it
# is; otherwise environment.sh makes .venv.
set -uo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
smoke=false
if [ "${1:-}" = --smoke ]; then smoke=true && shift; fi
out="${1:-$project/runs/gpu-check-$(date +%Y%m%d-%H%M%S)}"
wanted="${*:2}"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || exit 1
cd "$project"
python="${PYTHON:-python3}"
if ! "$python" -c 'import torch, megatron.core, transformers, typer, pydantic, omegaconf, pytest' 2>/dev/null; then
    source "$project/scripts/environment.sh"
    set +e
    python="$(command -v python)"
fi
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
device=cuda
if $smoke; then device=cpu; fi
if [ "$device" = cuda ] && ! "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "error: $python has no torch that sees a GPU" >&2
    echo "  set PYTHON to one that has, or try the parts on a CPU with --smoke" >&2
    exit 1
fi
failed=0

# part NAME LIMIT_SECONDS COMMAND ...: its output in NAME.log, how it ended in results.jsonl.
part() {
    local name="$1" limit="$2" began code
    shift 2
    if [ -n "$wanted" ] && [[ " $wanted " != *" $name "* ]]; then return; fi
    began="$(date +%s)"
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null
    code=$?
    local ended="passed"
    if [ "$code" = 124 ] || [ "$code" = 137 ]; then ended="stopped after its limit of $limit s"; elif [ "$code" != 0 ]; then ended="failed"; fi
    if [ "$ended" != passed ]; then failed=1; fi
    "$python" - "$name" "$ended" "$code" "$(($(date +%s) - began))" "$out" <<'PY' | tee -a "$out/results.jsonl"
import json, pathlib, sys
name, ended, code, seconds, out = sys.argv[1:]
record = {"part": name, "result": ended, "exit_code": int(code), "seconds": int(seconds)}
figures = pathlib.Path(out, f"{name}.figures.json")
if figures.is_file():
    record["figures"] = json.loads(figures.read_text())
print(json.dumps(record), flush=True)
PY
    if [ "$ended" != passed ]; then tail -n 15 "$out/$name.log"; fi
}

machine() {
    "$python" - "$out/machine.figures.json" <<'PY'
import importlib.metadata as metadata, json, platform, sys
import torch
found = {"python": platform.python_version(), "cuda": torch.version.cuda, "processor": platform.machine()}
for package in ("torch", "megatron-core", "transformers", "triton", "trl", "transformer-engine"):
    try:
        found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        found[package] = None
if torch.cuda.is_available():
    found["gpu"] = torch.cuda.get_device_name()
open(sys.argv[1], "w").write(json.dumps(found))
PY
    "$python" -m megatron_fork doctor examples/quickstart.yaml
}

# A run that is killed after its first checkpoint and resumed to its end.
killed_and_resumed() {
    local precision="$1" folder="$out/quickstart-$1" words waited=0
    rm -rf "$folder"
    words=(examples/quickstart.yaml run.folder="$folder" policy.precision="$precision" run.checkpoint_every=2 evaluation.every=0)
    # Half precision moves log-probs by more than the limit that float32 is held to.
    if [ "$precision" = bf16 ]; then words+=(rollout.mismatch_limit=1.0 rollout.probe_limit=1.0); fi
    if $smoke; then words+=(sft.steps=4 train.prompts_per_step=4 train.prompts_per_mini_batch=2 rollout.samples=4 data.held_out=8 rollout.dynamic_sampling=false evaluation.samples=1 objective.entropy_coef=0.01); fi
    if ! $smoke; then words+=(sft.steps=300); fi
    "$python" -m megatron_fork train "${words[@]}" train.steps=400 &
    local run=$!
    until [ -s "$folder/checkpoints/LATEST" ]; do
        sleep 0.2
        waited=$((waited + 1))
        if ! kill -0 "$run" 2>/dev/null || [ "$waited" -gt 500 ]; then
            kill -KILL "$run" 2>/dev/null
            echo "no checkpoint was written"
            return 1
        fi
    done
    kill -KILL "$run" && wait "$run"
    local step
    step="$(sed 's/step-0*\([0-9]*\).*/\1/' "$folder/checkpoints/LATEST")"
    "$python" -m megatron_fork train "${words[@]}" train.steps="$((step + 4))" | tee "$folder.resumed" || return 1
    grep -q "resuming .* after step" "$folder.resumed" || return 1
    "$python" - "$folder" "$out/quickstart-$precision.figures.json" <<'PY'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
steps = [record["step"] for record in records if record["stage"] == "train"]
assert steps == sorted(set(steps)), f"steps were written twice or lost: {steps}"
summary = json.loads((folder / "summary.json").read_text())
speed = {stage: [r["tokens_per_second"] for r in records if r["stage"] == stage] for stage in ("sft", "train")}
figures = {
    "steps": summary["steps"],
    "pass_rate": [summary["pass_rate_before"], summary["pass_rate_after"]],
    "mismatch_max": max((r.get("mismatch/max") or 0.0) for r in records),
    "tokens_per_second": {stage: sorted(values)[len(values) // 2] for stage, values in speed.items() if values},
}
pathlib.Path(sys.argv[2]).write_text(json.dumps(figures))
PY
}

lm_head() {
    local shape=(--device cuda --tokens 8192 --width 4096 --dtype bf16 --share 0.2 --rounds 3)
    if $smoke; then shape=(--device cpu --tokens 64 --width 32 --vocabulary 512 --dtype fp32 --share 0.2 --rounds 1); fi
    "$python" benchmarks/lm_head.py "${shape[@]}" --what head --contenders floor ours trl-fused-rows --out "$out/lm_head.json" || return 1
    "$python" - "$out/lm_head.json" "$out/lm-head.figures.json" <<'PY'
import json, sys
(result,) = json.load(open(sys.argv[1]))["head"]["results"]
figures = {}
for key, found in result["contenders"].items():
    figures[key] = found.get("unavailable") or {"seconds": found["median"]["wall_s"], "over_floor": found.get("over_floor", {}).get("wall")}
    assert not found.get("wrong"), f"{key} computes something else"
assert isinstance(figures["ours"], dict), figures["ours"]
open(sys.argv[2], "w").write(json.dumps(figures))
PY
}

tests() {
    local chosen=(tests/vocab_parallel/test_triton_tile.py tests/vocab_parallel/test_statistics_bad_input.py tests/vocab_parallel/test_lm_head_loss.py)
    if $smoke; then chosen=(tests/vocab_parallel/test_triton_tile.py -k "rows_apart"); fi
    "$python" -m pytest -q -m "not slow" -p no:cacheprovider "${chosen[@]}"
}

export -f killed_and_resumed lm_head tests machine
export python out smoke
part machine 40 bash -uc machine
part quickstart-fp32 80 bash -uc "killed_and_resumed fp32"
part quickstart-bf16 80 bash -uc "killed_and_resumed bf16"
part lm-head 60 bash -uc lm_head
part tests 90 bash -uc tests
echo "results in $out/results.jsonl"
exit "$failed"
