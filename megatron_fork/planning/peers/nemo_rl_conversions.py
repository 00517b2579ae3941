"""Fields of NeMo-RL that are computed from several of its values, or depend on another."""

from __future__ import annotations

from megatron_fork.planning.peers.table import Converted, Counterpart, derived, whole_part
from megatron_fork.planning.peers.values import Given, Kind

_WHOLE, _NUMBER, _FLAG, _TEXT = Given.whole, Given.number, Given.flag, Given.text
_MEGATRON, _DTENSOR, _GENERATION = "policy.megatron_cfg", "policy.dtensor_cfg", "policy.generation"
_COLOCATED = f"{_GENERATION}.colocated"


def mini_batch(given: Given) -> int | str:
    return whole_part(
        given.whole("policy.train_global_batch_size"), given.whole("grpo.num_generations_per_prompt"), "samples"
    )


def prompts_per_mini_batch(given: Given) -> Converted:
    prompts = mini_batch(given)
    return prompts if isinstance(prompts, str) else {"train.prompts_per_mini_batch": prompts}


def updates(given: Given, steps: int) -> Converted:
    """Optimizer steps in so many rollout steps."""
    prompts = mini_batch(given)
    updates = (
        prompts
        if isinstance(prompts, str)
        else whole_part(given.whole("grpo.num_prompts_per_step"), prompts, "prompts")
    )
    return updates if isinstance(updates, str) else {"optimizer.warmup_updates": steps * updates}


def on_megatron(theirs: str, ours: str, kind: Kind) -> Counterpart:
    def converted(given: Given) -> Converted:
        return {ours: kind(given, theirs)} if given.flag(f"{_MEGATRON}.enabled") else {}

    return derived(theirs, ours, converted, "where megatron_cfg is enabled")


def on_dtensor(theirs: str, ours: str, kind: Kind) -> Counterpart:
    def converted(given: Given) -> Converted:
        return {} if given.flag(f"{_MEGATRON}.enabled") else {ours: kind(given, theirs)}

    return derived(theirs, ours, converted, "where megatron_cfg is not enabled")


def warmup(given: Given) -> Converted:
    if not given.flag(f"{_MEGATRON}.enabled"):
        return {}
    return updates(given, given.whole(f"{_MEGATRON}.scheduler.lr_warmup_iters"))


def torch_warmup(given: Given) -> Converted:
    """The warm-up of a list of torch's schedulers, whose first is a linear one."""
    if given.flag(f"{_MEGATRON}.enabled"):
        return {}
    stages = given.value("policy.scheduler")
    first = stages[0] if isinstance(stages, list) and stages else stages
    if not isinstance(first, dict) or not str(first.get("name", "")).endswith("LinearLR"):
        return "only a linear warm-up has a counterpart"
    steps = first.get("kwargs", {}).get("total_iters") if isinstance(first.get("kwargs"), dict) else None
    return updates(given, steps) if isinstance(steps, int) else "it says no number of steps"


def recompute(given: Given) -> Converted:
    if not given.flag(f"{_MEGATRON}.enabled"):
        return {}
    on = given.flag(f"{_MEGATRON}.activation_checkpointing")
    granularity = given.text(f"{_MEGATRON}.recompute_granularity")
    if granularity not in ("full", "selective"):
        return "this granularity has no counterpart"
    return {"compute.recompute": granularity if on else "none"}


def engine(given: Given) -> Converted:
    backend, colocated = given.text(f"{_GENERATION}.backend"), given.flag(f"{_COLOCATED}.enabled")
    if backend not in ("vllm", "sglang"):
        return "this engine has no counterpart"
    return {"rollout.engine": "vllm_colocated" if colocated else backend}


def engine_tensor(given: Given) -> Converted:
    colocated = given.flag(f"{_COLOCATED}.enabled")
    field = "rollout.colocated.tensor" if colocated else "cluster.engine_tensor"
    return {field: given.whole(f"{_GENERATION}.vllm_cfg.tensor_parallel_size")}


def nodes(given: Given) -> Converted:
    nodes = given.whole("cluster.num_nodes")
    if given.flag(f"{_COLOCATED}.enabled"):
        return {"cluster.nodes": nodes}
    engines = (
        given.whole(f"{_COLOCATED}.resources.num_nodes") if given.is_written(f"{_COLOCATED}.resources.num_nodes") else 0
    )
    if not 0 < engines < nodes:
        return "engines that share a node with the trainer have no counterpart: whole nodes do (cluster.engine_nodes)"
    return {"cluster.nodes": nodes - engines, "cluster.engine_nodes": engines}


def loss(given: Given) -> Converted:
    if given.flag("loss_fn.use_cispo"):
        return {"objective.loss": "cispo"}
    return {"objective.loss": "gspo" if given.flag("loss_fn.sequence_level_importance_ratios") else "ppo"}


def advantage(given: Given) -> Converted:
    name = given.text("grpo.adv_estimator.name")
    if name == "reinforce_plus_plus":
        return {"objective.advantage": "reinforce_pp"}
    if name != "grpo":
        return "this estimator has no counterpart"
    normalized, left_out = given.flag("grpo.normalize_rewards"), given.flag("grpo.use_leave_one_out_baseline")
    if left_out:
        return (
            "the baseline that leaves one out, divided by the deviation, has no counterpart; grpo is nearest"
            if normalized
            else {"objective.advantage": "rloo"}
        )
    return {"objective.advantage": "grpo" if normalized else "dr_grpo"}


def shaping(given: Given) -> Converted:
    enabled = given.flag("grpo.reward_shaping.enabled")
    return {
        "objective.overlong.factor": given.number("grpo.reward_shaping.overlong_buffer_penalty") if enabled else 0.0
    }


def correction(given: Given) -> Converted:
    if not given.flag("loss_fn.use_importance_sampling_correction"):
        return {"objective.correction": "none"}
    kind = (
        given.text("loss_fn.truncated_importance_sampling_type")
        if given.is_written("loss_fn.truncated_importance_sampling_type")
        else ""
    )
    if kind not in ("tis", "icepop"):
        return "only tis and icepop have a counterpart"
    return {"objective.correction": kind}


def cap(given: Given) -> Converted:
    icepop = (
        given.is_written("loss_fn.truncated_importance_sampling_type")
        and given.text("loss_fn.truncated_importance_sampling_type") == "icepop"
    )
    field = "objective.icepop_high" if icepop else "objective.tis_cap"
    return {field: given.number("loss_fn.truncated_importance_sampling_ratio")}
