"""Engine against trainer with and without replay, on a real server: sampling masks, and the routing of a mixture of experts.

    bash scripts/engine_environment.sh sglang && bash scripts/engine_environment.sh vllm
    python benchmarks/replay.py --engine sglang --experts --out benchmarks/results/replay_sglang.json
    python benchmarks/replay.py --engine sglang --experts --bfloat16 --out benchmarks/results/replay_sglang_bf16.json
    python benchmarks/replay.py --engine vllm --out benchmarks/results/replay_vllm.json

A random model of the quickstart's size; the trainer computes in float32. With --bfloat16 the server does not, and its routers
choose other experts than the trainer's for tokens whose scores are close, as on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from served import write
from support.engine_servers import RunningServer
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3MoeConfig

from megatron_fork import distributed
from megatron_fork.conversion import PublishedWeights, load_weights
from megatron_fork.distributed import compatibility
from megatron_fork.experience import Batch, Prompt, Trajectory
from megatron_fork.models import ExpertsConfig
from megatron_fork.policy import Policy, PolicyConfig
from megatron_fork.rollout import Completion, RemoteConfig, RemoteEngine, Request, RolloutConfig

VOCABULARY, STOP, TEMPERATURE = 512, 1, 0.9
CUTS = {"top_p": 0.9, "top_k": 40, "min_p": 0.01}


def model_of(*, experts: bool) -> PreTrainedModel:
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.08,
        "tie_word_embeddings": False,
        "eos_token_id": STOP,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if not experts:
        return AutoModelForCausalLM.from_config(Qwen3Config(architectures=["Qwen3ForCausalLM"], **common)).eval()
    mixture = Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        **common,
    )
    return AutoModelForCausalLM.from_config(mixture).eval()


def draw(
    engine_name: str, url: str, model: PreTrainedModel, folder: Path, count: int, *, experts: bool
) -> tuple[list[Request], list[Completion]]:
    config = RolloutConfig(
        engine=engine_name,
        servers=[url],
        replay_sampling_mask=True,
        remote=RemoteConfig(control_seconds=300.0, health_timeout_seconds=60.0, stream_interval=16),
        **CUTS,
    )
    engine = RemoteEngine(
        config, model.config, stop_tokens=(STOP,), folder=folder, world=None, records_experts=experts, say=print
    )
    numbers = torch.Generator().manual_seed(1)
    asked = [
        Request(
            number,
            tuple(torch.randint(2, VOCABULARY, (12,), generator=numbers).tolist()),
            number,
            TEMPERATURE,
            64,
            reports_kept=True,
            **CUTS,
        )
        for number in range(count)
    ]
    with closing(engine):
        engine.update_weights(list(PublishedWeights(model.state_dict()).items()), 1)
        return asked, sorted(engine.generate(asked), key=lambda each: each.number)


def trajectories(asked: Sequence[Request], drawn: Sequence[Completion]) -> list[Trajectory]:
    return [
        Trajectory(
            number=each.number,
            prompt=Prompt(each.number, "", asked[each.number].tokens, ""),
            response=each.tokens,
            rollout_logprob=each.logprob,
            finish_reason=each.finish_reason,
            weight_version=1,
            experts=each.experts,
            kept=each.kept,
        )
        for each in drawn
    ]


@contextmanager
def policy_of(model: PreTrainedModel, *, replay: bool) -> Iterator[Policy]:
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        policy = Policy(
            PolicyConfig(),
            None,
            model.config,
            layout,
            temperature=TEMPERATURE,
            experts=ExpertsConfig(replay=replay),
        )
        load_weights(policy.model, dict(PublishedWeights(model.state_dict()).items()))
        yield policy


def mismatch(policy: Policy, made: list[Trajectory], *, masks: bool) -> dict[str, float]:
    batch = Batch.of_trajectories(made if masks else [replace(each, kept=None) for each in made])
    logprob_t, _ = policy.statistics(batch)
    assert batch.rollout_logprob_t is not None
    distance_t = (logprob_t - batch.rollout_logprob_t).abs()
    return {
        "max": float(distance_t.max()),
        "mean": float(distance_t.mean()),
        "share_above_0.01": float((distance_t > 0.01).double().mean()),
        "share_above_0.1": float((distance_t > 0.1).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["vllm", "sglang"], required=True)
    parser.add_argument("--experts", action="store_true", help="a mixture, whose routing the server reports")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    options = {"vllm": ["--max-logprobs", str(CUTS["top_k"])], "sglang": []}[arguments.engine]
    options += ["--enable-return-routed-experts"] if arguments.experts else []
    options += ["--dtype", "bfloat16"] if arguments.bfloat16 else []
    model = model_of(experts=arguments.experts)
    with tempfile.TemporaryDirectory(prefix="replay") as scratch:
        folder = Path(scratch)
        model.save_pretrained(folder / "model")
        server = RunningServer(arguments.engine, folder / "model", folder / "log", options=options)
        try:
            server.start(limit=1200.0)
            asked, drawn = draw(
                arguments.engine, server.url, model, folder / "weights", arguments.requests, experts=arguments.experts
            )
        finally:
            server.stop()
    made = trajectories(asked, drawn)
    compatibility.install()
    distributed.initialize()
    rows = []
    for replay in (True, False) if arguments.experts else (False,):
        with policy_of(model, replay=replay) as policy:
            for masks in (True, False):
                rows.append({"masks": masks, "experts": replay, **mismatch(policy, made, masks=masks)})
                print(json.dumps(rows[-1]), flush=True)
    sizes = [count for each in drawn for count in (each.kept.counts if each.kept else ())]
    about = {
        "engine": arguments.engine,
        "server_dtype": "bfloat16" if arguments.bfloat16 else "float32",
        **CUTS,
        "vocabulary": VOCABULARY,
        "tokens": len(sizes),
        "kept_tokens": sum(sizes) / len(sizes),
    }
    write(arguments.out, [about | row for row in rows])


if __name__ == "__main__":
    main()
