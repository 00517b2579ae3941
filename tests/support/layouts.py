"""Every legal layout of a few ranks, and what a policy makes of the same rollouts on each: shared by the layout tests."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, Qwen3Config, Qwen3MoeConfig

VOCABULARY = 37  # odd: tensor ranks hold padding


def model_config(*, tied: bool, experts: bool) -> PretrainedConfig:
    """Four layers, so that two pipeline stages of two chunks each have one."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
    }
    if not experts:
        return Qwen3Config(architectures=["Qwen3ForCausalLM"], **common)
    return Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        **common,
    )


def legal(ranks: int, *, experts: bool) -> Iterator[dict[str, Any]]:
    """Fields of `parallel` for every layout of `ranks` ranks under which `model_config` runs."""
    sizes = [size for size in (1, 2, 4) if ranks % size == 0] if ranks != 3 else [1, 3]
    for tensor, pipeline, context in itertools.product(sizes, repeat=3):
        if tensor * pipeline * context > ranks or ranks % (tensor * pipeline * context) or 3 in (tensor, pipeline):
            continue
        for sequence in ([True] if experts else [False, True]) if tensor > 1 else [False]:
            for virtual in (1, 2) if pipeline == 2 else (1,):
                for expert, expert_tensor in itertools.product((1, 2, 4), (1, 2, 4)) if experts else [(1, 1)]:
                    if (ranks // pipeline) % (expert * expert_tensor):
                        continue
                    if experts and expert == 1 and expert_tensor != tensor:
                        continue
                    yield {
                        "tensor": tensor,
                        "sequence": sequence,
                        "pipeline": pipeline,
                        "virtual_pipeline": virtual,
                        "context": context,
                        "expert": expert,
                        "expert_tensor": expert_tensor,
                    }


def name_of(parallel: dict[str, Any], options: dict[str, Any]) -> str:
    shown = {name: value for name, value in {**parallel, **options}.items() if value is True or value not in (1, False)}
    words = [f"{name} {value}" for name, value in shown.items()]
    return ", ".join(words) or "plain"


def trajectories(*, kept: bool = False, experts: bool = False) -> list[Any]:
    """Six groups of four responses of 1 to 20 tokens, with engine log-probs near the truth of no model in particular.

    With `kept` each token has a set that it was drawn from, some the whole vocabulary; with `experts` a routing.
    """
    from megatron_fork.experience import Prompt, Trajectory, logprob_array, token_array

    generator = random.Random(3)
    made: list[Any] = []
    for group in range(6):
        tokens = tuple(generator.randrange(VOCABULARY) for _ in range(generator.randint(2, 7)))
        for _ in range(4):
            length = generator.randint(1, 20)
            made.append(
                Trajectory(
                    number=len(made),
                    prompt=Prompt(group, "", tokens, ""),
                    response=token_array(generator.randrange(VOCABULARY) for _ in range(length)),
                    rollout_logprob=logprob_array(-generator.random() * 5 for _ in range(length)),
                    finish_reason="stop",
                    weight_version=0,
                    advantage=generator.uniform(-2, 2),
                )
            )
    return [
        replace(
            each,
            kept=_sets(each.response, random.Random(each.number)) if kept else None,
            experts=_routing(each.length, each.number) if experts else None,
        )
        for each in made
    ]


def _sets(response: Any, generator: random.Random) -> Any:
    from megatron_fork.experience import KeptTokens

    sets = KeptTokens()
    for token in response:
        others = generator.sample(range(VOCABULARY), generator.choice((0, 1, 4, 20)))
        sets.append([] if generator.random() < 0.1 else sorted({token, *others}))
    return sets


def _routing(length: int, seed: int) -> torch.Tensor:
    """`[length, 4 layers, 2]` of the 4 experts of `model_config`."""
    scores = torch.rand(length, 4, 4, generator=torch.Generator().manual_seed(seed))
    return scores.topk(2).indices.to(torch.int16)


def two_updates(
    parallel: dict[str, Any],
    *,
    tied: bool,
    experts: bool,
    packed: bool = True,
    distributed_optimizer: bool = False,
    overlap: bool = False,
    recompute: str = "none",
    loss: str = "ppo",
    denominator: str = "selected",
    balance: float = 0.0,
    precision: str = "fp32",
    backend: str = "auto",
    ratio: float = 0.2,
    kept: bool = False,
    replay: bool = False,
    as_float32: bool = False,
) -> dict[str, Any]:
    """Statistics, metrics, selected tokens, gradients of the first update and weights after the second, on this rank.

    With `replay` tokens go to given experts in every precision and layout: to any, or `as_float32` to those that Hugging Face's
    model in float32 has for them.
    """
    from megatron_fork import objective, selection
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import iter_hf_weights, load_weights
    from megatron_fork.distributed import ParallelConfig, collectives, parallel_layout
    from megatron_fork.models import ComputeConfig, ExpertsConfig
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )

    hf_config = model_config(tied=tied, experts=experts)
    torch.manual_seed(11)
    initial = AutoModelForCausalLM.from_config(hf_config)
    weights = initial.state_dict()
    made = trajectories(kept=kept, experts=replay)
    made = _routed(made, initial) if as_float32 else made
    with parallel_layout(ParallelConfig(**parallel)) as layout:
        policy = Policy(
            PolicyConfig(
                precision=precision,  # type: ignore[arg-type]
                tokens_per_micro_batch=70 if packed else 1,
                tokens_per_statistics_batch=90 if packed else 1,
            ),
            OptimizerConfig(
                learning_rate=3e-4,
                distributed=distributed_optimizer,
                overlap_gradients=overlap,
                overlap_parameters=overlap and distributed_optimizer,
            ),
            hf_config,
            layout,
            temperature=0.8,
            compute=ComputeConfig(backend=backend, recompute=recompute),  # type: ignore[arg-type]
            experts=ExpertsConfig(balance=balance, replay=replay),
        )
        load_weights(policy.model, weights)
        policy.weights_changed()
        goal = objective.ObjectiveConfig(loss=loss, denominator=denominator)  # type: ignore[arg-type]
        learner = Learner(TrainedModels(policy), selection.SelectionConfig(ratio=ratio), goal, mismatch_limit=100.0)
        batches = split_into_mini_batches(made, 3, group_size=4, seed=5)
        first = learner.step(batches[:1], step=1, rates=LearningRates(3e-4), clock=Clock())
        gradients = {} if distributed_optimizer else gradients_of(policy)
        second = learner.step(batches[1:], step=2, rates=LearningRates(3e-4), clock=Clock())
        results = [first, second]
        shares = [share for result in results for share in result.shares]
        columns = [(s.token_id_t, s.old_logprob_t, s.entropy_t, s.selected_t) for s in shares]
        everyone = collectives.gather_objects(columns, layout.data)
        trained = {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)}
        names = ["loss", "gradient_norm", "selection/threshold", "selection/selected", "entropy/mean"]
        names += ["experts/balance"] if balance else []
        names += ["entropy/kept_mean", "rollout/kept_tokens"] if kept else []
        return {
            "metrics": [{name: result.metrics[name] for name in names} for result in results],
            "tokens": [_by_token(parts) for parts in zip(*everyone, strict=True)],
            "weights": trained,
            "gradients": gradients,
        }


@torch.no_grad()
def _routed(made: list[Any], model: PreTrainedModel) -> list[Any]:
    """The trajectories with the experts `[length, layers, k]` that the routers of Hugging Face's `model` choose."""
    found = []
    for trajectory in made:
        read = [*trajectory.prompt.tokens, *trajectory.response.tolist()][: trajectory.length]
        scores = model(torch.tensor([read]), output_router_logits=True).router_logits
        experts = [layer_te.topk(model.config.num_experts_per_tok).indices for layer_te in scores]
        found.append(replace(trajectory, experts=torch.stack(experts, 1).to(torch.int16)))
    return found


def _by_token(parts: Any) -> dict[str, torch.Tensor]:
    """Columns of all data ranks in the order of token ids."""
    token_id, logprob, entropy, selected = (torch.cat(column) for column in zip(*parts, strict=True))
    order = token_id.argsort()
    return {"logprob": logprob[order], "entropy": entropy[order], "selected": token_id[order][selected[order]]}


def gradients_of(policy: Any) -> dict[str, torch.Tensor]:
    """As the optimizer left them after clipping, under Hugging Face's names: the bridge carries them in place of weights."""
    from megatron_fork.conversion import iter_hf_weights

    parameters = [parameter for chunk in policy.model for parameter in chunk.parameters()]
    weights = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.main_grad.clone()  # float32, also where the weight is not
    found = {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)}
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data = weight
    return found


def differences(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest relative difference of each kind; tensors by norm, the selected tokens by how many differ."""
    found = {"selected": 0.0, "logprob": 0.0, "entropy": 0.0, "metrics": 0.0, "weights": 0.0, "gradients": 0.0}
    for ours, theirs in zip(result["tokens"], reference["tokens"], strict=True):
        chosen, wanted = set(ours["selected"].tolist()), set(theirs["selected"].tolist())
        found["selected"] = max(found["selected"], float(len(chosen ^ wanted)))
        for name in ("logprob", "entropy"):
            found[name] = max(found[name], _relative(ours[name], theirs[name]))
    for ours, theirs in zip(result["metrics"], reference["metrics"], strict=True):
        for name, value in theirs.items():
            found["metrics"] = max(found["metrics"], abs(ours[name] - value) / max(abs(value), 1e-30))
    for kind in ("weights", "gradients"):
        for name, tensor in result[kind].items():
            # By norm, as Adam divides by the gradient's size: where that is rounding noise, so is the sign of the step.
            found[kind] = max(found[kind], _relative(tensor, reference[kind][name]))
    return found


def gradient_apart(result: dict[str, Any], reference: dict[str, Any], part: str = "") -> float:
    """Norm of the gradient's difference over its norm, of all tensors whose name has `part`; those of a single one may be
    small, and then mostly roundings.
    """
    names = {name: tensor for name, tensor in reference["gradients"].items() if part in name}
    apart = sum(float((result["gradients"][name] - tensor).square().sum()) for name, tensor in names.items())
    return (apart / sum(float(tensor.square().sum()) for tensor in names.values())) ** 0.5


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
