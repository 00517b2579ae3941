"""The planner against what was measured: bytes kept on this CPU, peaks on an H200, a published step; and its own time.

    python benchmarks/planner.py

Writes benchmarks/results/planner.json. The figures of the H200 were measured with local layers in bfloat16, one sequence, and a
fifth of its tokens trained: the peak of an update beyond what was held at rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.saved_bytes import Case, saved_bytes  # noqa: E402

from megatron_fork.cluster import ClusterConfig  # noqa: E402
from megatron_fork.config import RunConfig, TrainConfig, load_config  # noqa: E402
from megatron_fork.distributed import ParallelConfig  # noqa: E402
from megatron_fork.models import ComputeConfig, ModelConfig, ParameterCounts, config_from_recipe  # noqa: E402
from megatron_fork.planning import (  # noqa: E402
    Load,
    Machine,
    Question,
    Row,
    kept_of_row,
    memory_by_stage,
    model_shape,
    plan,
)
from megatron_fork.policy import OptimizerConfig, PolicyConfig  # noqa: E402
from megatron_fork.rollout import RolloutConfig  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "planner.json"
SMALL: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 768,
    "vocab_size": 1024,
}
MEDIUM = {**SMALL, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
MEDIUM["intermediate_size"] = 3072
# With torch's own modules as layers, of which full recomputation keeps the same inputs.
ON_GPU = [("Qwen3-8B", "full", 8703, 6.3), ("Qwen3-8B", "full", 30207, 15.4)]


def on_cpu() -> list[dict[str, Any]]:
    """Bytes that autograd saves for one row, measured and computed."""
    found = []
    for name, model in (("width 256", SMALL), ("width 1,024", MEDIUM)):
        for dtype in ("float32", "bfloat16"):
            for recompute in ("none", "selective", "full"):
                for lengths in ((1024,), (500, 470, 54)):
                    case = Case(model, lengths, compute={"recompute": recompute}, dtype=dtype)
                    config = RunConfig(
                        policy=PolicyConfig(precision="bf16" if dtype == "bfloat16" else "fp32"),
                        compute=ComputeConfig(recompute=recompute),  # type: ignore[arg-type]
                    )
                    computed = kept_of_row(config, config_from_recipe(model), Machine(on_gpu=False), Row(lengths))
                    measured = saved_bytes(case)
                    found.append(
                        {
                            "model": name,
                            "dtype": dtype,
                            "recompute": recompute,
                            "lengths": lengths,
                            "measured_bytes": measured,
                            "computed_bytes": computed,
                            "ratio": computed / measured,
                        }
                    )
    return found


def on_gpu() -> list[dict[str, Any]]:
    found = []
    for model, recompute, tokens, measured in ON_GPU:
        config = RunConfig(
            model=ModelConfig(path=model),
            policy=PolicyConfig(precision="bf16"),
            compute=ComputeConfig(recompute=recompute),  # type: ignore[arg-type]
        )
        load = Load(Row((tokens,)), Row((tokens,)), selected=0.2)
        counts = ParameterCounts.of(model_shape(config))
        (stage,) = memory_by_stage(config, counts, Machine(), load, ranks=1, micro_batches=1)
        computed = max(stage.phases["backward"], stage.phases["LM head"]) / 2**30
        found.append(
            {
                "model": model,
                "recompute": recompute,
                "tokens": tokens,
                "measured_gib": measured,
                "computed_gib": computed,
                "ratio": computed / measured,
            }
        )
    return found


def published_step() -> dict[str, Any]:
    """Qwen3-32B on 4 x 8 H100 with TP 4 and PP 4, 64 x 32 responses of 4,096 tokens, engines on the trainer's GPUs: 400 s."""
    config = RunConfig(
        model=ModelConfig(path="Qwen3-32B"),
        parallel=ParallelConfig(tensor=4, pipeline=4, sequence=True),
        policy=PolicyConfig(precision="bf16", tokens_per_micro_batch=4608, tokens_per_statistics_batch=16384),
        compute=ComputeConfig(recompute="full"),
        optimizer=OptimizerConfig(distributed=True),
        rollout=RolloutConfig(engine="vllm_colocated", samples=32, max_response_tokens=4096),
        train=TrainConfig(prompts_per_step=64, prompts_per_mini_batch=64),
        cluster=ClusterConfig(nodes=4, engine_nodes=0),
    )
    config = replace(config, rollout=replace(config.rollout, colocated=replace(config.rollout.colocated, tensor=4)))
    config = replace(config, data=replace(config.data, max_prompt_tokens=512))
    own = plan(config, Question(response=4096)).own
    return {
        "fits": own.fits,
        "gate_seconds": 400,
        "computed_seconds": own.time.total,
        "rollout": own.time.rollout,
        "statistics": own.time.statistics,
        "update": own.time.update,
        "weight update": own.time.sync,
        "ratio": own.time.total / 400,
    }


def recipes() -> list[dict[str, Any]]:
    """Every recipe that names nodes of engines: does it fit, what would, and the time of a plan once all is imported."""
    found = []
    for path in sorted((ROOT / "examples").glob("*/top20*.yaml")):
        config = load_config(path)
        started = time.perf_counter()
        answer = plan(config, Question())
        found.append(
            {
                "recipe": path.relative_to(ROOT).as_posix(),
                "gpus": answer.own.gpus,
                "fits": answer.own.fits,
                "peak_gib": answer.own.peak / 2**30,
                "step_seconds": answer.own.time.total,
                "fewest_gpus": answer.fewest.gpus if answer.fewest else None,
                "balanced_gpus": answer.balanced.gpus if answer.balanced else None,
                "seconds_to_plan": time.perf_counter() - started,
            }
        )
    return found


def whole_command() -> float:
    """Processor seconds of the command, imports included, which another job on the machine does not change."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    recipe = ROOT / "examples" / "qwen3-32b" / "top20_29k.yaml"
    subprocess.run([sys.executable, "-m", "megatron_fork", "plan", str(recipe)], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    results = {
        "kept on a CPU": on_cpu(),
        "peak on an H200": on_gpu(),
        "published step": published_step(),
        "recipes": recipes(),
        "processor seconds of the command": whole_command(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
