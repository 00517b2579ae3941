"""verl: `verl.trainer.main_ppo` and what is built on it."""

from __future__ import annotations

from megatron_fork.planning.peers import verl_conversions as convert
from megatron_fork.planning.peers.table import (
    Own,
    PeerTable,
    choice,
    derived,
    same,
    unless_off,
)
from megatron_fork.planning.peers.values import Given
from megatron_fork.planning.peers.verl_missing import MISSING

_ACTOR, _ROLLOUT, _REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
_OPTIM, _MEGATRON, _POLICY_LOSS = f"{_ACTOR}.optim", f"{_ACTOR}.megatron", f"{_ACTOR}.policy_loss"
_OVERRIDE = f"{_MEGATRON}.override_transformer_config"
_WHOLE, _NUMBER, _FLAG, _TEXT = Given.whole, Given.number, Given.flag, Given.text

VERL = PeerTable(
    title="verl",
    files="a shell script or a list of Hydra's dotted overrides, or YAML (that of `--cfg job`, where Hydra has composed it)",
    arguments="dotted",
    counterparts=(
        same("data.train_batch_size", "train.prompts_per_step", _WHOLE, "prompts, in both", default=1024),
        same(
            f"{_ACTOR}.ppo_mini_batch_size",
            "train.prompts_per_mini_batch",
            _WHOLE,
            "prompts, in both: verl multiplies it by rollout.n itself",
            default=256,
        ),
        same(f"{_ROLLOUT}.n", "rollout.samples", _WHOLE, default=1),
        same("data.max_prompt_length", "data.max_prompt_tokens", _WHOLE, default=512),
        same("data.max_response_length", "rollout.max_response_tokens", _WHOLE, default=512),
        same(f"{_ROLLOUT}.prompt_length", "data.max_prompt_tokens", _WHOLE),
        same(f"{_ROLLOUT}.response_length", "rollout.max_response_tokens", _WHOLE),
        choice("data.filter_overlong_prompts", {True: {"data.over_long": "drop"}, False: {"data.over_long": "refuse"}}),
        same("data.train_files", "data.source", _TEXT, "one file; data.preset knows published ones (docs/data.md)"),
        same("data.prompt_key", "data.columns.prompt", _TEXT, default="prompt"),
        same("data.seed", "data.seed", _WHOLE, "here the seed of the split of held-out prompts", caution=True),
        same("actor_rollout_ref.model.path", "model.path", _TEXT, "a folder, which nothing is downloaded to"),
        derived(
            f"{_ROLLOUT}.name",
            "rollout.engine",
            convert.engine,
            "colocated in both; SGLang runs as servers alone here, so vLLM stands for it",
            default="vllm",
        ),
        same(f"{_ROLLOUT}.tensor_model_parallel_size", "rollout.colocated.tensor", _WHOLE, default=2),
        same(
            f"{_ROLLOUT}.gpu_memory_utilization",
            "rollout.colocated.gpu_memory_utilization",
            _NUMBER,
            "beside the policy: verl can move it to the host meanwhile, here it stays",
            caution=True,
            default=0.5,
        ),
        same(f"{_ROLLOUT}.enforce_eager", "rollout.colocated.eager", _FLAG),
        same(f"{_ROLLOUT}.free_cache_engine", "rollout.colocated.sleep", _FLAG),
        same(f"{_ROLLOUT}.temperature", "rollout.temperature", _NUMBER, default=1.0),
        same(f"{_ROLLOUT}.top_p", "rollout.top_p", _NUMBER, default=1.0),
        unless_off(f"{_ROLLOUT}.top_k", "rollout.top_k", _WHOLE, "-1 there is 0 here", off=0, default=-1),
        choice(
            "algorithm.filter_groups.enable",
            {True: {"rollout.dynamic_sampling": True}, False: {"rollout.dynamic_sampling": False}},
            "verl draws whole batches until enough groups are left; here each group is replaced as soon as it is judged",
            default=False,
        ),
        derived(
            "algorithm.filter_groups.max_num_gen_batches",
            "rollout.max_rounds",
            lambda given: (
                {"rollout.max_rounds": rounds}
                if (rounds := given.whole("algorithm.filter_groups.max_num_gen_batches")) > 0
                else "without a limit there; a limit is needed here"
            ),
            "verl fails after so many batches; here the step trains on what it has",
            caution=True,
        ),
        derived("algorithm.adv_estimator", "objective.advantage", convert.advantage, default="gae"),
        derived("algorithm.norm_adv_by_std_in_grpo", "objective.advantage", convert.advantage, default=True),
        same("algorithm.gamma", "objective.gae.gamma", _NUMBER),
        same("algorithm.lam", "objective.gae.lam", _NUMBER),
        same(f"{_ACTOR}.clip_ratio_low", "objective.clip_low", _NUMBER),
        same(f"{_ACTOR}.clip_ratio_high", "objective.clip_high", _NUMBER),
        derived(
            f"{_ACTOR}.clip_ratio",
            ("objective.clip_low", "objective.clip_high"),
            convert.both_clips,
            "used where clip_ratio_low and clip_ratio_high are not given",
            default=0.2,
        ),
        same(f"{_ACTOR}.clip_ratio_c", "objective.dual_clip", _NUMBER, default=3.0),
        derived(
            f"{_ACTOR}.loss_agg_mode",
            ("objective.average", "objective.constant_length"),
            convert.average,
            "over the whole mini-batch here; older versions of verl average over each micro-batch. "
            "seq-mean-token-sum-norm is not divided by the number of responses there",
            default="token-mean",
        ),
        choice(
            f"{_POLICY_LOSS}.loss_mode",
            {
                name: {"objective.loss": ours}
                for name, ours in (("vanilla", "ppo"), ("gspo", "gspo"), ("clip_cov", "clip_cov"), ("kl_cov", "kl_cov"))
            }
            | {"cispo": {"objective.loss": "cispo"}},
            default="vanilla",
        ),
        same(f"{_POLICY_LOSS}.clip_cov_ratio", "objective.cov_share", _NUMBER),
        same(f"{_POLICY_LOSS}.clip_cov_lb", "objective.cov_low", _NUMBER),
        same(f"{_POLICY_LOSS}.clip_cov_ub", "objective.cov_high", _NUMBER),
        same(f"{_POLICY_LOSS}.kl_cov_ratio", "objective.cov_share", _NUMBER),
        same(f"{_POLICY_LOSS}.ppo_kl_coef", "objective.cov_kl_coef", _NUMBER),
        same(f"{_ACTOR}.entropy_coeff", "objective.entropy_coef", _NUMBER),
        derived(f"{_ACTOR}.use_kl_loss", "objective.kl_coef", convert.kl, default=False),
        derived(
            f"{_ACTOR}.kl_loss_coef", "objective.kl_coef", convert.kl, "used where use_kl_loss is true", default=0.001
        ),
        choice(
            f"{_ACTOR}.kl_loss_type",
            {
                name: {"objective.kl_estimator": ours}
                for name, ours in (
                    ("kl", "k1"),
                    ("k1", "k1"),
                    ("mse", "k2"),
                    ("k2", "k2"),
                    ("low_var_kl", "k3"),
                    ("k3", "k3"),
                )
            },
        ),
        same(f"{_OPTIM}.lr", "optimizer.learning_rate", _NUMBER),
        derived(
            f"{_OPTIM}.lr_warmup_steps",
            "optimizer.warmup_updates",
            convert.warmup,
            "verl counts rollout steps, this counts optimizer steps: multiplied by the mini-batches of a step",
            caution=True,
        ),
        same(f"{_OPTIM}.weight_decay", "optimizer.weight_decay", _NUMBER, default=0.01),
        derived(
            f"{_OPTIM}.betas",
            ("optimizer.beta1", "optimizer.beta2"),
            lambda given: (
                {"optimizer.beta1": betas[0], "optimizer.beta2": betas[1]}
                if isinstance(betas := given.value(f"{_OPTIM}.betas"), list) and len(betas) == 2
                else "two numbers are needed"
            ),
        ),
        same(f"{_OPTIM}.clip_grad", "optimizer.clip_gradient", _NUMBER),
        same(f"{_ACTOR}.grad_clip", "optimizer.clip_gradient", _NUMBER),
        choice(
            f"{_OPTIM}.lr_decay_style",
            {"constant": {"optimizer.decay": "constant"}, "linear": {"optimizer.decay": "linear"}},
            "linear ends at 5 % of the peak here",
        ),
        same("critic.optim.lr", "critic.optimizer.learning_rate", _NUMBER),
        same("critic.ppo_epochs", "critic.epochs", _WHOLE),
        same("critic.cliprange_value", "objective.gae.value_clip", _NUMBER),
        same("trainer.critic_warmup", "critic.warmup_steps", _WHOLE),
        same(f"{_MEGATRON}.tensor_model_parallel_size", "parallel.tensor", _WHOLE),
        same(f"{_MEGATRON}.pipeline_model_parallel_size", "parallel.pipeline", _WHOLE),
        same(f"{_MEGATRON}.context_parallel_size", "parallel.context", _WHOLE),
        same(f"{_MEGATRON}.expert_model_parallel_size", "parallel.expert", _WHOLE),
        same(f"{_MEGATRON}.expert_tensor_parallel_size", "parallel.expert_tensor", _WHOLE),
        derived(
            f"{_MEGATRON}.virtual_pipeline_model_parallel_size",
            "parallel.virtual_pipeline",
            lambda given: {
                "parallel.virtual_pipeline": given.whole(f"{_MEGATRON}.virtual_pipeline_model_parallel_size")
            },
            "model chunks of a stage, in both",
        ),
        derived(
            f"{_MEGATRON}.sequence_parallel",
            "parallel.sequence",
            lambda given: {
                "parallel.sequence": given.flag(f"{_MEGATRON}.sequence_parallel")
                and given.is_written(f"{_MEGATRON}.tensor_model_parallel_size")
                and given.whole(f"{_MEGATRON}.tensor_model_parallel_size") > 1
            },
            "with one tensor rank there is nothing to divide",
            default=True,
        ),
        same(f"{_MEGATRON}.use_distributed_optimizer", "optimizer.distributed", _FLAG, default=True),
        same(f"{_OPTIM}.override_optimizer_config.optimizer_offload_fraction", "optimizer.offload", _NUMBER),
        choice(
            f"{_OVERRIDE}.recompute_granularity",
            {"full": {"compute.recompute": "full"}, "selective": {"compute.recompute": "selective"}},
        ),
        same(f"{_OVERRIDE}.recompute_num_layers", "compute.recompute_layers", _WHOLE),
        choice(
            "actor_rollout_ref.model.enable_gradient_checkpointing",
            {True: {"compute.recompute": "full"}, False: {"compute.recompute": "none"}},
        ),
        same(
            f"{_ACTOR}.ulysses_sequence_parallel_size",
            "parallel.context",
            _WHOLE,
            "Ulysses divides heads there, ring attention divides tokens here; the ranks are as many",
            caution=True,
        ),
        same(
            f"{_ACTOR}.ppo_max_token_len_per_gpu",
            "policy.tokens_per_micro_batch",
            _WHOLE,
            "tokens of a rank, times the context ranks, in both",
            default=16384,
        ),
        same(f"{_ROLLOUT}.log_prob_max_token_len_per_gpu", "policy.tokens_per_statistics_batch", _WHOLE),
        same(f"{_REF}.log_prob_max_token_len_per_gpu", "policy.tokens_per_statistics_batch", _WHOLE),
        choice(
            f"{_MEGATRON}.dtype",
            {"bfloat16": {"policy.precision": "bf16"}, "float32": {"policy.precision": "fp32"}},
            default="bfloat16",
        ),
        *convert.overlong("reward_model.overlong_buffer", "penalty_factor"),
        *convert.overlong("reward_model.reward_kwargs.overlong_buffer_cfg", "penalty_factor"),
        *convert.overlong("reward.reward_kwargs.overlong_buffer_cfg", "penalty_factor"),
        same("reward_model.reward_kwargs.max_resp_len", "objective.overlong.max_response", _WHOLE),
        same("reward.reward_kwargs.max_resp_len", "objective.overlong.max_response", _WHOLE),
        derived(
            "algorithm.rollout_correction.rollout_is",
            "objective.correction",
            lambda given: (
                {"objective.correction": "tis"}
                if given.text("algorithm.rollout_correction.rollout_is") == "token"
                else "only weights of single tokens have a counterpart"
            ),
        ),
        same("algorithm.rollout_correction.rollout_is_threshold", "objective.tis_cap", _NUMBER),
        same("trainer.total_training_steps", "train.steps", _WHOLE, "rollout steps, in both"),
        unless_off("trainer.test_freq", "evaluation.every", _WHOLE, "-1 there is 0 here", off=0, default=-1),
        same(f"{_ROLLOUT}.val_kwargs.n", "evaluation.samples", _WHOLE),
        unless_off(
            "trainer.save_freq",
            "run.checkpoint_every",
            _WHOLE,
            "-1 there is 0 here; a last one is always written",
            off=0,
            default=-1,
        ),
        same("trainer.max_actor_ckpt_to_keep", "run.keep_checkpoints", _WHOLE),
        same("trainer.experiment_name", "run.name", _TEXT),
        derived("trainer.project_name", "run.wandb", convert.wandb, "where trainer.logger has wandb"),
        derived(
            "trainer.logger",
            "run.wandb",
            convert.wandb,
            "metrics.jsonl and the console are always written",
            default=["console"],
        ),
        same("trainer.nnodes", "cluster.nodes", _WHOLE, default=1),
        same("trainer.n_gpus_per_node", "cluster.gpus_per_node", _WHOLE, default=8),
    ),
    missing=MISSING,
    own=(
        Own(
            "selection.tokens", "all", "verl trains on all tokens; `top` with selection.ratio=0.2 is the paper's method"
        ),
        Own("data.columns.answer", "reward_model.ground_truth", "where verl's prepared files have the answer"),
        Own("data.template", "chat", "verl applies the tokenizer's own template"),
        Own("objective.overlong.factor", 0.0, "no shaping where none is asked for"),
        Own("optimizer.warmup_updates", 0, "none where none is asked for"),
        Own(
            "rollout.mismatch_limit", float("inf"), "verl has no limit; in bf16 single tokens differ by more than 0.01"
        ),
        Own("rollout.probe_limit", float("inf"), "as above"),
    ),
)
