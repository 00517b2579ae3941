"""Settings of verl without a counterpart, and why."""

from __future__ import annotations

from megatron_fork.planning.peers.table import Missing, absent

_ACTOR, _ROLLOUT, _REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
_OPTIM, _MEGATRON, _POLICY_LOSS = f"{_ACTOR}.optim", f"{_ACTOR}.megatron", f"{_ACTOR}.policy_loss"
_OVERRIDE = f"{_MEGATRON}.override_transformer_config"

MISSING: tuple[Missing, ...] = (
    *absent("a class of verl's own", "*._target_", lost=False),
    *absent("KL in the reward; here it is in the loss (objective.kl_coef)", "algorithm.use_kl_in_reward", off=(False,)),
    *absent("belongs to KL in the reward", "algorithm.kl_ctrl.*", "algorithm.kl_penalty", lost=False),
    *absent("here the policy makes one pass over a step", f"{_ACTOR}.ppo_epochs", off=(1,)),
    *absent(
        "prompts drawn at a time while groups are filtered; here replacements are drawn one by one",
        "data.gen_batch_size",
        lost=False,
    ),
    *absent(
        "groups are judged by their rewards",
        "algorithm.filter_groups.metric",
        off=("acc", "score", "seq_reward", "seq_final_reward"),
    ),
    *absent("no prompt is ever cut: data.over_long refuses or drops it", "data.truncation", off=("error",)),
    *absent(
        "prompt sets beside the held-out prompts are named in evaluation.sets", "data.val_files", "data.val_batch_size"
    ),
    *absent("evaluations draw at the rollout's temperature from the full softmax", f"{_ROLLOUT}.val_kwargs.*"),
    *absent(
        "micro-batches here hold a number of tokens (policy.tokens_per_micro_batch)",
        f"{_ACTOR}.ppo_micro_batch_size",
        f"{_ACTOR}.ppo_micro_batch_size_per_gpu",
        f"{_ROLLOUT}.log_prob_micro_batch_size*",
        f"{_REF}.log_prob_micro_batch_size*",
        lost=False,
    ),
    *absent(
        "always so: micro-batches are packed by tokens",
        f"{_ACTOR}.use_dynamic_bsz",
        f"{_ROLLOUT}.log_prob_use_dynamic_bsz",
        f"{_REF}.log_prob_use_dynamic_bsz",
        "actor_rollout_ref.model.use_remove_padding",
        f"{_MEGATRON}.use_remove_padding",
        "trainer.balance_batch",
        lost=False,
    ),
    *absent("the reference policy has the layout of the policy", f"{_REF}.*", lost=False),
    *absent(
        "FSDP is not used here: Megatron's layouts are (parallel)",
        f"{_ACTOR}.fsdp_config.*",
        f"{_ACTOR}.strategy",
        f"{_ACTOR}.fsdp_size",
        lost=False,
    ),
    *absent(
        "nothing moves to the host between the phases; optimizer.offload keeps a part there for good",
        f"{_MEGATRON}.param_offload",
        f"{_MEGATRON}.grad_offload",
        f"{_MEGATRON}.optimizer_offload",
        off=(False,),
    ),
    *absent(
        "weights are converted by this project's own bridge",
        f"{_MEGATRON}.use_mbridge",
        f"{_MEGATRON}.vanilla_mbridge",
        f"{_MEGATRON}.use_dist_checkpointing",
        f"{_MEGATRON}.dist_checkpointing_*",
        lost=False,
    ),
    *absent(
        "Megatron's own settings are chosen by this project (docs/layouts.md)",
        f"{_OVERRIDE}.*",
        f"{_MEGATRON}.override_*",
        f"{_OPTIM}.override_optimizer_config.*",
    ),
    *absent(
        "a kernel or switch of verl's; the LM head here is always fused",
        "actor_rollout_ref.model.use_fused_kernels",
        f"{_ACTOR}.use_torch_compile",
        f"{_ACTOR}.use_fused_kernels",
        f"{_ACTOR}.entropy_*",
        lost=False,
    ),
    *absent(
        "an option of the engine, which has its own here (rollout.colocated)",
        f"{_ROLLOUT}.enable_chunked_prefill",
        f"{_ROLLOUT}.max_num_batched_tokens",
        f"{_ROLLOUT}.max_num_seqs",
        f"{_ROLLOUT}.enable_prefix_caching",
        f"{_ROLLOUT}.load_format",
        f"{_ROLLOUT}.disable_log_stats",
        f"{_ROLLOUT}.max_model_len",
        f"{_ROLLOUT}.dtype",
        f"{_ROLLOUT}.engine_kwargs.*",
        f"{_ROLLOUT}.mode",
        lost=False,
    ),
    *absent("tools and several turns are not trained here", f"{_ROLLOUT}.multi_turn.enable", off=(False,)),
    *absent(
        "adapters are not trained here",
        "actor_rollout_ref.model.lora_rank",
        "actor_rollout_ref.model.lora.rank",
        off=(0,),
    ),
    *absent("belongs to adapters", "actor_rollout_ref.model.lora*", lost=False),
    *absent(
        "code of a model's folder is never run",
        "actor_rollout_ref.model.trust_remote_code",
        "data.trust_remote_code",
        off=(False,),
    ),
    *absent("the critic has the policy's shape and starts from its weights", "critic.*", lost=False),
    *absent(
        "the reward is a function (rewards.kind: math, or module:function)",
        "reward_model.reward_manager",
        "reward.reward_manager*",
        "reward_model.reward_kwargs.overlong_buffer_cfg.log",
        "reward.reward_kwargs.overlong_buffer_cfg.log",
        lost=False,
    ),
    *absent(
        "a reward function of yours: rewards.kind=module:function (docs/rewards.md)",
        "custom_reward_function.*",
        "reward.custom_reward_function.*",
    ),
    *absent("reward models are not used here", "reward_model.enable", off=(False,)),
    *absent("steps are counted here, not passes over the prompts (train.steps)", "trainer.total_epochs", lost=False),
    *absent("a run's folder is of its own kind here: set run.folder", "trainer.default_local_dir", lost=False),
    *absent("a folder that holds a checkpoint is resumed", "trainer.resume_mode", off=("auto",)),
    *absent("the first evaluation is always made", "trainer.val_before_train", off=(True,)),
    *absent(
        "traces of trajectories are written (run.trace_every)",
        "trainer.log_val_generations",
        "trainer.rollout_data_dir",
        "trainer.validation_data_dir",
        lost=False,
    ),
    *absent(
        "no Ray here",
        "ray_kwargs.*",
        "trainer.ray_wait_register_center_timeout",
        "actor_rollout_ref.hybrid_engine",
        "actor_rollout_ref.nccl_timeout",
        "transfer_queue.*",
        lost=False,
    ),
    *absent(
        "profilers are not part of a recipe",
        "global_profiler.*",
        f"{_ACTOR}.profiler.*",
        f"{_ROLLOUT}.profiler.*",
        lost=False,
    ),
    *absent("Hydra's own", "--config-path", "--config-name", "hydra.*", lost=False),
    *absent("the parts that Hydra composes are not read here: write the whole with `--cfg job`", "defaults"),
    *absent("checkpoints hold all that a run needs", f"{_ACTOR}.checkpoint.*", lost=False),
    *absent(
        "the rate's course has a warm-up and a decay alone (optimizer)",
        f"{_OPTIM}.*",
        off=(False, 0, -1, "adam", "constant", "exponential", {}),
    ),
    *absent(
        "pictures are not trained on", f"{_ACTOR}.freeze_vision_tower", "data.image_key", "data.video_key", lost=False
    ),
)
