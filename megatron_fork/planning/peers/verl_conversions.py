"""Fields of verl that are computed from several of its values, or depend on another."""

from __future__ import annotations

from megatron_fork.planning.peers.table import Converted, derived, same, whole_part
from megatron_fork.planning.peers.values import Given

_ACTOR, _ROLLOUT, _REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
_OPTIM, _MEGATRON, _POLICY_LOSS = f"{_ACTOR}.optim", f"{_ACTOR}.megatron", f"{_ACTOR}.policy_loss"
_OVERRIDE = f"{_MEGATRON}.override_transformer_config"
_WHOLE, _NUMBER, _FLAG, _TEXT = Given.whole, Given.number, Given.flag, Given.text


def updates_a_step(given: Given) -> int | str:
    return whole_part(
        given.whole("data.train_batch_size"), given.whole(f"{_ACTOR}.ppo_mini_batch_size"), "prompts in a step"
    )


def warmup(given: Given) -> Converted:
    steps, updates = given.whole(f"{_OPTIM}.lr_warmup_steps"), updates_a_step(given)
    if steps < 0:
        return {}
    return updates if isinstance(updates, str) else {"optimizer.warmup_updates": steps * updates}


def average(given: Given) -> Converted:
    mode = given.text(f"{_ACTOR}.loss_agg_mode")
    lengths = {"seq-mean-token-sum": "constant", "token-mean": "token", "seq-mean-token-mean": "sequence"}
    if mode == "seq-mean-token-sum-norm":
        if given.is_written(f"{_ACTOR}.loss_scale_factor"):
            length = given.whole(f"{_ACTOR}.loss_scale_factor")
        else:
            length = given.whole("data.max_response_length")
        return {"objective.average": "constant", "objective.constant_length": length}
    if mode not in lengths:
        return "this average has no counterpart"
    found: dict[str, object] = {"objective.average": lengths[mode]}
    return {**found, "objective.constant_length": 1} if lengths[mode] == "constant" else found


def both_clips(given: Given) -> Converted:
    value = given.number(f"{_ACTOR}.clip_ratio")
    return {"objective.clip_low": value, "objective.clip_high": value}


def kl(given: Given) -> Converted:
    return {"objective.kl_coef": given.number(f"{_ACTOR}.kl_loss_coef") if given.flag(f"{_ACTOR}.use_kl_loss") else 0.0}


def advantage(given: Given) -> Converted:
    name = given.text("algorithm.adv_estimator")
    whitened = given.flag("algorithm.norm_adv_by_std_in_grpo")
    known = {
        "grpo": "grpo" if whitened else "dr_grpo",
        "grpo_vectorized": "grpo" if whitened else "dr_grpo",
        "gae": "gae",
        "rloo": "rloo",
        "rloo_vectorized": "rloo",
        "reinforce_plus_plus_baseline": "reinforce_pp",
    }
    return {"objective.advantage": known[name]} if name in known else "this estimator has no counterpart"


def engine(given: Given) -> Converted:
    name = given.text(f"{_ROLLOUT}.name")
    if name == "hf":
        return {"rollout.engine": "embedded"}
    return {"rollout.engine": "vllm_colocated"} if name in ("vllm", "sglang") else "this engine has no counterpart"


def overlong(prefix: str, penalty: str) -> tuple:
    def factor(given: Given) -> Converted:
        enabled = given.flag(f"{prefix}.enable")
        return {"objective.overlong.factor": given.number(f"{prefix}.{penalty}") if enabled else 0.0}

    return (
        derived(f"{prefix}.enable", "objective.overlong.factor", factor),
        same(f"{prefix}.len", "objective.overlong.cache", _WHOLE),
        derived(f"{prefix}.{penalty}", "objective.overlong.factor", factor),
    )


def wandb(given: Given) -> Converted:
    loggers = given.value("trainer.logger")
    names = loggers if isinstance(loggers, list) else [loggers]
    return {"run.wandb": given.text("trainer.project_name")} if "wandb" in names else {}
