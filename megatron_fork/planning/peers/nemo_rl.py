"""NeMo-RL: the YAML of `run_grpo.py`."""

from __future__ import annotations

from megatron_fork.planning.peers import nemo_rl_conversions as convert
from megatron_fork.planning.peers.nemo_rl_missing import MISSING
from megatron_fork.planning.peers.table import (
    Own,
    PeerTable,
    choice,
    derived,
    same,
)
from megatron_fork.planning.peers.values import Given

_WHOLE, _NUMBER, _FLAG, _TEXT = Given.whole, Given.number, Given.flag, Given.text
_MEGATRON, _DTENSOR, _GENERATION = "policy.megatron_cfg", "policy.dtensor_cfg", "policy.generation"
_COLOCATED = f"{_GENERATION}.colocated"

NEMO_RL = PeerTable(
    title="NeMo-RL",
    files="YAML, with what it extends by `defaults`, or a shell script with dotted overrides",
    arguments="dotted",
    extends=True,
    extra_defaults={
        f"{_MEGATRON}.enabled": False,
        f"{_COLOCATED}.enabled": True,
        "loss_fn.use_cispo": False,
        "loss_fn.sequence_level_importance_ratios": False,
        f"{_MEGATRON}.recompute_granularity": "full",
        "grpo.normalize_rewards": True,
        "grpo.use_leave_one_out_baseline": False,
        "grpo.reward_shaping.enabled": False,
        "loss_fn.use_importance_sampling_correction": False,
    },
    counterparts=(
        same("grpo.num_prompts_per_step", "train.prompts_per_step", _WHOLE, "prompts, in both"),
        same("grpo.num_generations_per_prompt", "rollout.samples", _WHOLE),
        derived(
            "policy.train_global_batch_size",
            "train.prompts_per_mini_batch",
            convert.prompts_per_mini_batch,
            "NeMo-RL counts samples, this counts prompts: divided by grpo.num_generations_per_prompt",
            caution=True,
        ),
        same("grpo.max_num_steps", "train.steps", _WHOLE, "rollout steps, in both"),
        same("grpo.seed", "seed", _WHOLE),
        choice(
            "grpo.use_dynamic_sampling",
            {True: {"rollout.dynamic_sampling": True}, False: {"rollout.dynamic_sampling": False}},
            default=False,
        ),
        same(
            "grpo.dynamic_sampling_max_gen_batches",
            "rollout.max_rounds",
            _WHOLE,
            "NeMo-RL fails after so many batches; here the step trains on what it has",
            caution=True,
        ),
        derived("grpo.adv_estimator.name", "objective.advantage", convert.advantage, default="grpo"),
        derived("grpo.normalize_rewards", "objective.advantage", convert.advantage),
        derived("grpo.use_leave_one_out_baseline", "objective.advantage", convert.advantage),
        same("grpo.overlong_filtering", "objective.overlong.filter", _FLAG),
        derived("grpo.reward_shaping.enabled", "objective.overlong.factor", convert.shaping),
        derived("grpo.reward_shaping.overlong_buffer_penalty", "objective.overlong.factor", convert.shaping),
        same("grpo.reward_shaping.overlong_buffer_length", "objective.overlong.cache", _WHOLE),
        same("grpo.reward_shaping.max_response_length", "objective.overlong.max_response", _WHOLE),
        same("grpo.val_period", "evaluation.every", _WHOLE),
        same("grpo.val_num_generations_per_prompt", "evaluation.samples", _WHOLE),
        choice(
            "grpo.async_grpo.enabled",
            {False: {"rollout.max_staleness": 0}, True: {}},
            "how far ahead is max_trajectory_age_steps",
        ),
        derived(
            "grpo.async_grpo.max_trajectory_age_steps",
            "rollout.max_staleness",
            lambda given: (
                {"rollout.max_staleness": given.whole("grpo.async_grpo.max_trajectory_age_steps")}
                if given.flag("grpo.async_grpo.enabled")
                else {}
            ),
            "where async_grpo is enabled; rollout steps there, updates of the engine here, which are as many",
        ),
        same("loss_fn.ratio_clip_min", "objective.clip_low", _NUMBER, "the lower one, in spite of its name"),
        same("loss_fn.ratio_clip_max", "objective.clip_high", _NUMBER),
        same("loss_fn.ratio_clip_c", "objective.dual_clip", _NUMBER),
        same(
            "loss_fn.reference_policy_kl_penalty",
            "objective.kl_coef",
            _NUMBER,
            "0.01 in NeMo-RL's own files: a second model in memory",
        ),
        same("loss_fn.reference_policy_kl_type", "objective.kl_estimator", _TEXT),
        choice(
            "loss_fn.token_level_loss",
            {True: {"objective.average": "token"}, False: {"objective.average": "sequence"}},
            default=True,
        ),
        derived("loss_fn.sequence_level_importance_ratios", "objective.loss", convert.loss),
        derived("loss_fn.use_cispo", "objective.loss", convert.loss),
        derived("loss_fn.use_importance_sampling_correction", "objective.correction", convert.correction),
        derived("loss_fn.truncated_importance_sampling_type", "objective.correction", convert.correction),
        derived(
            "loss_fn.truncated_importance_sampling_ratio", ("objective.tis_cap", "objective.icepop_high"), convert.cap
        ),
        same(
            "loss_fn.truncated_importance_sampling_ratio_min",
            "objective.icepop_low",
            _NUMBER,
            "under icepop; tis has no lower bound here",
            caution=True,
        ),
        same("policy.model_name", "model.path", _TEXT, "a folder here, which nothing is downloaded to", caution=True),
        same(f"{_GENERATION}.max_new_tokens", "rollout.max_response_tokens", _WHOLE),
        same(
            "policy.max_total_sequence_length",
            "rollout.max_response_tokens",
            _WHOLE,
            "prompt and response together there",
            caution=True,
        ),
        same("data.max_input_seq_length", "data.max_prompt_tokens", _WHOLE),
        choice(
            "policy.precision",
            {"bfloat16": {"policy.precision": "bf16"}, "float32": {"policy.precision": "fp32"}},
            default="bfloat16",
        ),
        derived(
            f"{_GENERATION}.backend",
            "rollout.engine",
            convert.engine,
            "a colocated engine is vLLM here",
            default="vllm",
        ),
        derived(f"{_COLOCATED}.enabled", "rollout.engine", convert.engine),
        derived(
            f"{_GENERATION}.vllm_cfg.tensor_parallel_size",
            ("cluster.engine_tensor", "rollout.colocated.tensor"),
            convert.engine_tensor,
        ),
        same(
            f"{_GENERATION}.vllm_cfg.gpu_memory_utilization",
            "rollout.colocated.gpu_memory_utilization",
            _NUMBER,
            "beside the policy, which stays on the GPU here",
            caution=True,
        ),
        same(f"{_GENERATION}.vllm_cfg.enforce_eager", "rollout.colocated.eager", _FLAG),
        same(f"{_GENERATION}.temperature", "rollout.temperature", _NUMBER, default=1.0),
        same(f"{_GENERATION}.top_p", "rollout.top_p", _NUMBER, default=1.0),
        same(f"{_GENERATION}.top_k", "rollout.top_k", _WHOLE),
        same(f"{_GENERATION}.stop_token_ids", "rollout.stop_tokens", Given.value),
        convert.on_megatron(f"{_MEGATRON}.tensor_model_parallel_size", "parallel.tensor", _WHOLE),
        convert.on_megatron(f"{_MEGATRON}.pipeline_model_parallel_size", "parallel.pipeline", _WHOLE),
        convert.on_megatron(f"{_MEGATRON}.context_parallel_size", "parallel.context", _WHOLE),
        convert.on_megatron(f"{_MEGATRON}.expert_model_parallel_size", "parallel.expert", _WHOLE),
        convert.on_megatron(f"{_MEGATRON}.expert_tensor_parallel_size", "parallel.expert_tensor", _WHOLE),
        derived(
            f"{_MEGATRON}.sequence_parallel",
            "parallel.sequence",
            lambda given: (
                {
                    "parallel.sequence": given.flag(f"{_MEGATRON}.sequence_parallel")
                    and given.is_written(f"{_MEGATRON}.tensor_model_parallel_size")
                    and given.whole(f"{_MEGATRON}.tensor_model_parallel_size") > 1
                }
                if given.flag(f"{_MEGATRON}.enabled")
                else {}
            ),
            "with one tensor rank there is nothing to divide",
        ),
        derived(f"{_MEGATRON}.activation_checkpointing", "compute.recompute", convert.recompute),
        derived(
            f"{_MEGATRON}.recompute_granularity",
            "compute.recompute",
            convert.recompute,
            "where activation_checkpointing is on",
        ),
        convert.on_megatron(f"{_MEGATRON}.optimizer.lr", "optimizer.learning_rate", _NUMBER),
        convert.on_megatron(f"{_MEGATRON}.optimizer.weight_decay", "optimizer.weight_decay", _NUMBER),
        convert.on_megatron(f"{_MEGATRON}.optimizer.adam_beta1", "optimizer.beta1", _NUMBER),
        convert.on_megatron(f"{_MEGATRON}.optimizer.adam_beta2", "optimizer.beta2", _NUMBER),
        convert.on_megatron(f"{_MEGATRON}.optimizer.use_distributed_optimizer", "optimizer.distributed", _FLAG),
        convert.on_megatron(f"{_MEGATRON}.optimizer.optimizer_offload_fraction", "optimizer.offload", _NUMBER),
        derived(
            f"{_MEGATRON}.scheduler.lr_warmup_iters",
            "optimizer.warmup_updates",
            convert.warmup,
            "NeMo-RL counts rollout steps, this counts optimizer steps: multiplied by the mini-batches of a step",
            caution=True,
        ),
        derived(
            "policy.scheduler",
            "optimizer.warmup_updates",
            convert.torch_warmup,
            "rollout steps there, optimizer steps here; where megatron_cfg is not enabled",
            caution=True,
        ),
        derived(
            f"{_MEGATRON}.scheduler.lr_decay_style",
            "optimizer.decay",
            lambda given: (
                {"optimizer.decay": style}
                if (style := given.text(f"{_MEGATRON}.scheduler.lr_decay_style")) in ("constant", "linear")
                else "this decay has no counterpart"
            ),
        ),
        convert.on_dtensor("policy.optimizer.kwargs.lr", "optimizer.learning_rate", _NUMBER),
        convert.on_dtensor("policy.optimizer.kwargs.weight_decay", "optimizer.weight_decay", _NUMBER),
        convert.on_dtensor(f"{_DTENSOR}.tensor_parallel_size", "parallel.tensor", _WHOLE),
        convert.on_dtensor(f"{_DTENSOR}.context_parallel_size", "parallel.context", _WHOLE),
        same("policy.max_grad_norm", "optimizer.clip_gradient", _NUMBER),
        same("policy.sequence_packing.train_mb_tokens", "policy.tokens_per_micro_batch", _WHOLE),
        same("policy.sequence_packing.logprob_mb_tokens", "policy.tokens_per_statistics_batch", _WHOLE),
        same("checkpointing.save_period", "run.checkpoint_every", _WHOLE),
        same(
            "checkpointing.keep_top_k",
            "run.keep_checkpoints",
            _WHOLE,
            "the best ones by a metric there, the newest ones here",
            caution=True,
        ),
        same("logger.wandb.project", "run.wandb", _TEXT),
        same("logger.wandb.name", "run.name", _TEXT),
        derived(
            "cluster.num_nodes",
            ("cluster.nodes", "cluster.engine_nodes"),
            convert.nodes,
            "all nodes there, those of the trainer here",
            default=1,
        ),
        same("cluster.gpus_per_node", "cluster.gpus_per_node", _WHOLE, default=1),
        same("data.train.data_path", "data.source", _TEXT),
        same("data.train_data_path", "data.source", _TEXT),
        same("data.train.input_key", "data.columns.prompt", _TEXT),
        same("data.train.output_key", "data.columns.answer", _TEXT),
    ),
    missing=MISSING,
    own=(
        Own(
            "selection.tokens",
            "all",
            "NeMo-RL trains on all tokens; `top` with selection.ratio=0.2 is the paper's method",
        ),
        Own("objective.dual_clip", 0.0, "no dual clip is asked for"),
        Own("objective.overlong.factor", 0.0, "no shaping where none is asked for"),
        Own("optimizer.warmup_updates", 0, "none where none is asked for"),
        Own("data.template", "chat", "NeMo-RL applies the tokenizer's own template"),
        Own(
            "rollout.mismatch_limit",
            float("inf"),
            "NeMo-RL has no limit; in bf16 single tokens differ by more than 0.01",
        ),
        Own("rollout.probe_limit", float("inf"), "as above"),
    ),
)
