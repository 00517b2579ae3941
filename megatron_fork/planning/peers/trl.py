"""TRL: the arguments of `GRPOConfig`, `ModelConfig` and the script that `trl grpo` runs."""

from __future__ import annotations

from megatron_fork.planning.peers.table import (
    Converted,
    Own,
    PeerTable,
    choice,
    derived,
    same,
    unless_off,
    whole_part,
)
from megatron_fork.planning.peers.trl_missing import MISSING
from megatron_fork.planning.peers.values import Given

_WHOLE, _NUMBER, _FLAG, _TEXT = Given.whole, Given.number, Given.flag, Given.text


def _samples_per_update(given: Given) -> int:
    return (
        given.whole("per_device_train_batch_size")
        * given.whole("gradient_accumulation_steps")
        * given.whole("num_processes")
    )


def _samples_per_step(given: Given) -> int:
    if given.is_written("generation_batch_size"):
        return given.whole("generation_batch_size")
    accumulated = given.whole("gradient_accumulation_steps")
    batches = given.whole("steps_per_generation") if given.is_written("steps_per_generation") else accumulated
    return given.whole("per_device_train_batch_size") * given.whole("num_processes") * batches


def _updates_per_step(given: Given) -> int | str:
    return whole_part(_samples_per_step(given), _samples_per_update(given), "samples in a step")


def _batches(given: Given) -> Converted:
    samples = given.whole("num_generations")
    step = whole_part(_samples_per_step(given), samples, "samples in a step")
    update = whole_part(_samples_per_update(given), samples, "samples in an update")
    if isinstance(step, str) or isinstance(update, str):
        return step if isinstance(step, str) else str(update)
    return {"train.prompts_per_step": step, "train.prompts_per_mini_batch": update}


def _steps(given: Given) -> Converted:
    if given.whole("max_steps") < 0:
        return "it counts passes over the prompts: set train.steps"
    updates = _updates_per_step(given)
    steps = updates if isinstance(updates, str) else whole_part(given.whole("max_steps"), updates, "optimizer steps")
    return steps if isinstance(steps, str) else {"train.steps": steps}


def _epsilon(given: Given) -> Converted:
    low = given.number("epsilon")
    return {"objective.clip_low": low} | ({} if given.is_written("epsilon_high") else {"objective.clip_high": low})


def _epsilon_high(given: Given) -> Converted:
    high = given.number("epsilon_high")
    if given.text("loss_type") == "cispo":
        return {"objective.clip_high": high - 1.0}
    return {"objective.clip_high": high}


def _loss(given: Given) -> Converted:
    whole_response = given.text("importance_sampling_level") == "sequence"
    loss = {"objective.loss": "gspo" if whole_response else "ppo"}
    length = given.whole("max_completion_length")
    known: dict[str, Converted] = {
        "dapo": {**loss, "objective.average": "token"},
        "bnpo": {**loss, "objective.average": "token"},
        "grpo": {**loss, "objective.average": "sequence"},
        "dr_grpo": {**loss, "objective.average": "constant", "objective.constant_length": length},
        "cispo": {"objective.loss": "cispo", "objective.average": "token"},
    }
    return known.get(given.text("loss_type"), "this loss has no counterpart")


def _level(given: Given) -> Converted:
    found = _loss(given)
    return found if isinstance(found, str) else {"objective.loss": found["objective.loss"]}


def _selection(given: Given) -> Converted:
    ratio = given.number("top_entropy_quantile")
    if ratio >= 1.0:
        return {"selection.tokens": "all"}
    return {"selection.tokens": "top", "selection.preset": "trl", "selection.ratio": ratio}


def _engine(given: Given) -> Converted:
    if not given.flag("use_vllm"):
        return {"rollout.engine": "embedded"}
    modes = {"server": "vllm", "colocate": "vllm_colocated"}
    mode = given.text("vllm_mode")
    return {"rollout.engine": modes[mode]} if mode in modes else "this mode has no counterpart"


def _server(given: Given) -> Converted:
    return {"rollout.servers": [given.text("vllm_server_base_url")]}


def _correction(given: Given) -> Converted:
    if not given.flag("use_vllm") or not given.flag("vllm_importance_sampling_correction"):
        return {"objective.correction": "none"}
    mode = given.text("vllm_importance_sampling_mode")
    known = {"token_truncate": "tis"}
    return {"objective.correction": known[mode]} if mode in known else f"{mode}: only token_truncate has a counterpart"


def _warmup(given: Given) -> Converted:
    steps = given.number("warmup_steps")
    return (
        {"optimizer.warmup_updates": int(steps)}
        if steps.is_integer()
        else "a fraction of the run: set optimizer.warmup_updates"
    )


TRL = PeerTable(
    title="TRL",
    files="YAML or JSON (`trl grpo --config`), Python with one GRPOConfig(...), which is never run, or a shell script",
    arguments="options",
    python_class="GRPOConfig",
    python_trainer="GRPOTrainer",
    extra_defaults={
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 8,
        "vllm_mode": "server",
        "vllm_importance_sampling_mode": "sequence_mask",
        "importance_sampling_level": "token",
        "max_completion_length": 256,
    },
    counterparts=(
        derived(
            "num_processes",
            ("train.prompts_per_step", "train.prompts_per_mini_batch"),
            _batches,
            "processes of accelerate, by which TRL multiplies its batches; 1 where the file does not tell",
            caution=True,
            default=1,
            assumed=True,
        ),
        derived(
            "per_device_train_batch_size",
            ("train.prompts_per_step", "train.prompts_per_mini_batch"),
            _batches,
            "samples of a device there, prompts here: times processes and accumulated batches, divided by num_generations",
            caution=True,
        ),
        derived(
            "gradient_accumulation_steps",
            ("train.prompts_per_step", "train.prompts_per_mini_batch"),
            _batches,
            "a factor of the samples of an update",
        ),
        derived(
            "steps_per_generation",
            ("train.prompts_per_step", "train.prompts_per_mini_batch"),
            _batches,
            "batches of a device in a step",
        ),
        derived(
            "generation_batch_size",
            ("train.prompts_per_step", "train.prompts_per_mini_batch"),
            _batches,
            "samples of a step; prompts here",
            caution=True,
        ),
        same("num_generations", "rollout.samples", _WHOLE, default=8),
        same("num_generations_eval", "evaluation.samples", _WHOLE),
        same("max_completion_length", "rollout.max_response_tokens", _WHOLE, default=256),
        same(
            "max_prompt_length",
            "data.max_prompt_tokens",
            _WHOLE,
            "TRL cuts longer prompts; here data.over_long refuses or drops them",
            caution=True,
        ),
        same("temperature", "rollout.temperature", _NUMBER, default=1.0),
        same("top_p", "rollout.top_p", _NUMBER, default=1.0),
        unless_off("top_k", "rollout.top_k", _WHOLE, off=0, default=0),
        same("min_p", "rollout.min_p", _NUMBER),
        derived("use_vllm", "rollout.engine", _engine, default=False),
        derived("vllm_mode", "rollout.engine", _engine, "where use_vllm is true"),
        derived("vllm_server_base_url", "rollout.servers", _server),
        same("vllm_tensor_parallel_size", "rollout.colocated.tensor", _WHOLE),
        same("vllm_gpu_memory_utilization", "rollout.colocated.gpu_memory_utilization", _NUMBER),
        same("vllm_enable_sleep_mode", "rollout.colocated.sleep", _FLAG),
        derived(
            "epsilon_high",
            "objective.clip_high",
            _epsilon_high,
            "under cispo TRL names the cap itself, which is 1 + clip_high here",
        ),
        derived(
            "epsilon",
            ("objective.clip_low", "objective.clip_high"),
            _epsilon,
            "also the upper one where epsilon_high is not given",
            default=0.2,
        ),
        same("delta", "objective.dual_clip", _NUMBER, "the largest ratio where the advantage is negative, in both"),
        same("beta", "objective.kl_coef", _NUMBER, "of k3, in both", default=0.0),
        same("entropy_coef", "objective.entropy_coef", _NUMBER),
        derived(
            "loss_type",
            ("objective.loss", "objective.average", "objective.constant_length"),
            _loss,
            "over the whole mini-batch here; bnpo averages over each device's micro-batch there",
            default="dapo",
        ),
        derived("importance_sampling_level", "objective.loss", _level),
        choice(
            "scale_rewards",
            {
                True: {"objective.advantage": "grpo"},
                "group": {"objective.advantage": "grpo"},
                False: {"objective.advantage": "dr_grpo"},
                "none": {"objective.advantage": "dr_grpo"},
                "batch": "the deviation of a batch has no counterpart",
            },
        ),
        same("mask_truncated_completions", "objective.overlong.filter", _FLAG, default=False),
        derived(
            "top_entropy_quantile",
            ("selection.tokens", "selection.preset", "selection.ratio"),
            _selection,
            "preset trl takes the quantile as TRL does, over a micro-batch of all ranks; paper over the mini-batch",
            caution=True,
            default=1.0,
        ),
        derived("vllm_importance_sampling_correction", "objective.correction", _correction, default=True),
        derived("vllm_importance_sampling_mode", "objective.correction", _correction),
        same("vllm_importance_sampling_clip_max", "objective.tis_cap", _NUMBER),
        same("vllm_importance_sampling_cap", "objective.tis_cap", _NUMBER),
        same("learning_rate", "optimizer.learning_rate", _NUMBER, default=1e-6),
        derived("warmup_steps", "optimizer.warmup_updates", _warmup, "optimizer steps, in both"),
        same("weight_decay", "optimizer.weight_decay", _NUMBER, default=0.0),
        same("adam_beta1", "optimizer.beta1", _NUMBER),
        same("adam_beta2", "optimizer.beta2", _NUMBER, default=0.999),
        same("max_grad_norm", "optimizer.clip_gradient", _NUMBER),
        choice(
            "lr_scheduler_type",
            {
                "constant": {"optimizer.decay": "constant"},
                "constant_with_warmup": {"optimizer.decay": "constant"},
                "linear": {"optimizer.decay": "linear"},
            },
            "linear ends at 5 % of the peak here, at 0 there",
            default="linear",
        ),
        derived(
            "max_steps",
            "train.steps",
            _steps,
            "TRL counts optimizer steps, this counts rollout steps: divided by the updates of a step",
            caution=True,
        ),
        choice("bf16", {True: {"policy.precision": "bf16"}, False: {"policy.precision": "fp32"}}, default=True),
        choice(
            "gradient_checkpointing",
            {True: {"compute.recompute": "full"}, False: {"compute.recompute": "none"}},
            default=True,
        ),
        same("seed", "seed", _WHOLE, default=42),
        same("save_steps", "run.checkpoint_every", _WHOLE, "optimizer steps there, rollout steps here", caution=True),
        same("save_total_limit", "run.keep_checkpoints", _WHOLE),
        same("eval_steps", "evaluation.every", _WHOLE, "optimizer steps there, rollout steps here", caution=True),
        same("run_name", "run.name", _TEXT),
        same("model_name_or_path", "model.path", _TEXT, "a folder here, which nothing is downloaded to"),
        same("model", "model.path", _TEXT, "a folder here, which nothing is downloaded to"),
    ),
    missing=MISSING,
    own=(
        Own("rollout.dynamic_sampling", False, "TRL has no dynamic sampling"),
        Own("objective.dual_clip", 0.0, "no delta is given"),
        Own(
            "objective.overlong.factor", 0.0, "shaping is a reward function of its own in TRL: objective.overlong here"
        ),
        Own("optimizer.warmup_updates", 0, "none where none is asked for"),
        Own("data.template", "chat", "TRL applies the tokenizer's own template to conversations"),
        Own("rollout.mismatch_limit", float("inf"), "TRL has no limit; in bf16 single tokens differ by more than 0.01"),
        Own("rollout.probe_limit", float("inf"), "as above"),
    ),
)
