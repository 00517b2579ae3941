"""slime: `train.py` and `train_async.py` with Megatron's and its own options."""

from __future__ import annotations

from megatron_fork.planning.peers.slime_missing import MISSING
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
from megatron_fork.planning.peers.values import Given

_WHOLE, _NUMBER, _FLAG, _TEXT = Given.whole, Given.number, Given.flag, Given.text


def _mini_batch(given: Given) -> Converted:
    prompts = whole_part(
        given.whole("--global-batch-size"), given.whole("--n-samples-per-prompt"), "samples of --global-batch-size"
    )
    return prompts if isinstance(prompts, str) else {"train.prompts_per_mini_batch": prompts}


def _mini_batches(given: Given) -> Converted:
    prompts = whole_part(
        given.whole("--rollout-batch-size"), given.whole("--num-steps-per-rollout"), "prompts of --rollout-batch-size"
    )
    return prompts if isinstance(prompts, str) else {"train.prompts_per_mini_batch": prompts}


def _clip_low(given: Given) -> Converted:
    low = given.number("--eps-clip")
    return {"objective.clip_low": low} | ({} if given.is_written("--eps-clip-high") else {"objective.clip_high": low})


def _colocated(given: Given) -> bool:
    return given.flag("--colocate")


def _engine_nodes(given: Given) -> Converted:
    if _colocated(given):
        return {}
    nodes = whole_part(given.whole("--rollout-num-gpus"), given.whole("--num-gpus-per-node"), "GPUs of engines")
    return nodes + ", the GPUs of a node" if isinstance(nodes, str) else {"cluster.engine_nodes": nodes}


def _engine_ranks(given: Given) -> Converted:
    field = "rollout.colocated.tensor" if _colocated(given) else "cluster.engine_tensor"
    return {field: given.whole("--rollout-num-gpus-per-engine")}


def _kl(given: Given) -> Converted:
    return {"objective.kl_coef": given.number("--kl-loss-coef") if given.flag("--use-kl-loss") else 0.0}


def _advantage(given: Given) -> Converted:
    name = given.text("--advantage-estimator")
    grouped = "dr_grpo" if given.flag("--disable-grpo-std-normalization") else "grpo"
    known: dict[str, Converted] = {
        "grpo": {"objective.loss": "ppo", "objective.advantage": grouped},
        "gspo": {"objective.loss": "gspo", "objective.advantage": grouped},
        "cispo": {"objective.loss": "cispo", "objective.advantage": grouped},
        "ppo": {"objective.loss": "ppo", "objective.advantage": "gae"},
        "reinforce_plus_plus_baseline": {"objective.loss": "ppo", "objective.advantage": "reinforce_pp"},
    }
    return known.get(name, "this estimator has no counterpart")


def _without_std(given: Given) -> Converted:
    found = _advantage(given)
    return found if isinstance(found, str) else {"objective.advantage": found["objective.advantage"]}


SLIME = PeerTable(
    title="slime",
    files="a shell script that starts its trainer, or a list of its options",
    arguments="options",
    option_prefix="--",
    extra_defaults={
        "--num-gpus-per-node": 8,
        "--colocate": False,
        "--use-kl-loss": False,
        "--disable-grpo-std-normalization": False,
    },
    counterparts=(
        same("--rollout-batch-size", "train.prompts_per_step", _WHOLE, "prompts, in both"),
        same("--n-samples-per-prompt", "rollout.samples", _WHOLE, default=1),
        derived(
            "--global-batch-size",
            "train.prompts_per_mini_batch",
            _mini_batch,
            "slime counts samples, this counts prompts: divided by --n-samples-per-prompt",
            caution=True,
        ),
        derived(
            "--num-steps-per-rollout",
            "train.prompts_per_mini_batch",
            _mini_batches,
            "mini-batches of a step there: --rollout-batch-size divided by it",
        ),
        same("--num-rollout", "train.steps", _WHOLE, "rollout steps, in both"),
        same("--rollout-max-response-len", "rollout.max_response_tokens", _WHOLE),
        same(
            "--rollout-max-prompt-len",
            "data.max_prompt_tokens",
            _WHOLE,
            "slime leaves longer prompts out; here data.over_long says so",
        ),
        same(
            "--rollout-temperature",
            "rollout.temperature",
            _NUMBER,
            "log-probs are of the softmax at this temperature, in both",
            default=1.0,
        ),
        same("--rollout-top-p", "rollout.top_p", _NUMBER, default=1.0),
        unless_off("--rollout-top-k", "rollout.top_k", _WHOLE, "-1 there is 0 here", off=0, default=-1),
        derived(
            "--rollout-stop-token-ids",
            "rollout.stop_tokens",
            lambda given: {
                "rollout.stop_tokens": found
                if isinstance(found := given.value("--rollout-stop-token-ids"), list)
                else [found]
            },
        ),
        same("--rollout-seed", "seed", _WHOLE, default=42),
        choice(
            "--colocate",
            {True: {"rollout.engine": "vllm_colocated"}, False: {"rollout.engine": "sglang"}},
            "SGLang runs as servers alone here, so vLLM stands for a colocated one",
            default=False,
        ),
        derived("--rollout-num-gpus", "cluster.engine_nodes", _engine_nodes, "GPUs there, whole nodes here"),
        derived(
            "--rollout-num-gpus-per-engine",
            ("cluster.engine_tensor", "rollout.colocated.tensor"),
            _engine_ranks,
            default=1,
        ),
        same(
            "--sglang-mem-fraction-static",
            "rollout.colocated.gpu_memory_utilization",
            _NUMBER,
            "of vLLM, while it is awake beside the policy",
            caution=True,
        ),
        choice(
            "--update-weight-transport",
            {"nccl": {"rollout.sync": "nccl"}, "disk": {"rollout.sync": "disk"}},
            default="nccl",
        ),
        derived(
            "--dynamic-sampling-filter-path",
            "rollout.dynamic_sampling",
            lambda given: (
                {"rollout.dynamic_sampling": True}
                if given.text("--dynamic-sampling-filter-path").rpartition(".")[2] == "check_reward_nonzero_std"
                else "a filter of its own: rollout.dynamic_sampling replaces groups whose rewards are all equal"
            ),
        ),
        choice(
            "--partial-rollout",
            {True: {"rollout.max_staleness": 1, "rollout.tail": "stop", "objective.correction": "tis"}},
            "continued under the next weights; needs objective.correction here",
            caution=True,
        ),
        same("--prompt-data", "data.source", _TEXT),
        same("--input-key", "data.columns.prompt", _TEXT, default="input"),
        same("--label-key", "data.columns.answer", _TEXT),
        choice(
            "--apply-chat-template", {True: {"data.template": "chat"}, False: {"data.template": "none"}}, default=False
        ),
        same("--hf-checkpoint", "model.path", _TEXT),
        derived("--advantage-estimator", ("objective.advantage", "objective.loss"), _advantage, default="grpo"),
        derived("--disable-grpo-std-normalization", "objective.advantage", _without_std),
        choice(
            "--calculate-per-token-loss",
            {True: {"objective.average": "token"}, False: {"objective.average": "sequence"}},
            "without it slime averages over each response first, as average=sequence here",
            default=False,
        ),
        same("--eps-clip-high", "objective.clip_high", _NUMBER),
        derived(
            "--eps-clip",
            ("objective.clip_low", "objective.clip_high"),
            _clip_low,
            "also the upper one where --eps-clip-high is not given",
            default=0.2,
        ),
        same("--eps-clip-c", "objective.dual_clip", _NUMBER),
        same("--entropy-coef", "objective.entropy_coef", _NUMBER),
        derived("--use-kl-loss", "objective.kl_coef", _kl),
        derived("--kl-loss-coef", "objective.kl_coef", _kl, "used where --use-kl-loss is given"),
        choice(
            "--kl-loss-type",
            {
                name: {"objective.kl_estimator": ours}
                for name, ours in (("k1", "k1"), ("k2", "k2"), ("k3", "k3"), ("low_var_kl", "k3"))
            },
            "low_var_kl is k3 that is clipped",
            default="k1",
        ),
        same("--gamma", "objective.gae.gamma", _NUMBER),
        same("--lambd", "objective.gae.lam", _NUMBER),
        same("--value-clip", "objective.gae.value_clip", _NUMBER),
        same("--num-critic-only-steps", "critic.warmup_steps", _WHOLE),
        choice("--use-tis", {True: {"objective.correction": "tis"}, False: {"objective.correction": "none"}}),
        same("--tis-clip", "objective.tis_cap", _NUMBER),
        choice(
            "--use-rollout-routing-replay",
            {True: {"experts.replay": True}, False: {"experts.replay": False}},
            "the engine must report its experts",
        ),
        same("--lr", "optimizer.learning_rate", _NUMBER, default=1e-6),
        same("--lr-warmup-iters", "optimizer.warmup_updates", _WHOLE, "optimizer steps, in both"),
        choice(
            "--lr-decay-style",
            {"constant": {"optimizer.decay": "constant"}, "linear": {"optimizer.decay": "linear"}},
            "linear ends at 5 % of the peak here",
            default="linear",
        ),
        same("--weight-decay", "optimizer.weight_decay", _NUMBER, default=0.01),
        same("--adam-beta1", "optimizer.beta1", _NUMBER),
        same("--adam-beta2", "optimizer.beta2", _NUMBER),
        same("--clip-grad", "optimizer.clip_gradient", _NUMBER),
        same("--use-distributed-optimizer", "optimizer.distributed", _FLAG, "slime always has it", default=True),
        same("--overlap-grad-reduce", "optimizer.overlap_gradients", _FLAG),
        same("--overlap-param-gather", "optimizer.overlap_parameters", _FLAG),
        choice("--optimizer-cpu-offload", {True: {"optimizer.offload": 1.0}, False: {"optimizer.offload": 0.0}}),
        same("--tensor-model-parallel-size", "parallel.tensor", _WHOLE),
        same("--pipeline-model-parallel-size", "parallel.pipeline", _WHOLE),
        same("--context-parallel-size", "parallel.context", _WHOLE),
        same("--expert-model-parallel-size", "parallel.expert", _WHOLE),
        same("--expert-tensor-parallel-size", "parallel.expert_tensor", _WHOLE),
        derived(
            "--sequence-parallel",
            "parallel.sequence",
            lambda given: {
                "parallel.sequence": given.flag("--sequence-parallel")
                and given.is_written("--tensor-model-parallel-size")
                and given.whole("--tensor-model-parallel-size") > 1
            },
            "with one tensor rank there is nothing to divide",
        ),
        choice(
            "--recompute-granularity",
            {"full": {"compute.recompute": "full"}, "selective": {"compute.recompute": "selective"}},
        ),
        same("--recompute-num-layers", "compute.recompute_layers", _WHOLE),
        same(
            "--max-tokens-per-gpu",
            "policy.tokens_per_micro_batch",
            _WHOLE,
            "tokens of a rank, times the context ranks, in both",
        ),
        same("--log-probs-max-tokens-per-gpu", "policy.tokens_per_statistics_batch", _WHOLE),
        same("--moe-aux-loss-coeff", "experts.balance", _NUMBER),
        same("--eval-interval", "evaluation.every", _WHOLE),
        same("--n-samples-per-eval-prompt", "evaluation.samples", _WHOLE),
        same("--save-interval", "run.checkpoint_every", _WHOLE),
        same("--async-save", "run.checkpoint_async", _FLAG),
        same("--wandb-project", "run.wandb", _TEXT),
        same("--wandb-group", "run.name", _TEXT),
        same("--actor-num-nodes", "cluster.nodes", _WHOLE, default=1),
        same("--actor-num-gpus-per-node", "cluster.gpus_per_node", _WHOLE, default=8),
    ),
    missing=MISSING,
    own=(
        Own(
            "selection.tokens",
            "all",
            "slime trains on all tokens; `top` with selection.ratio=0.2 is the paper's method",
        ),
        Own("policy.precision", "bf16", "slime's Megatron trains in bf16"),
        Own("rollout.dynamic_sampling", False, "no filter is asked for"),
        Own("objective.dual_clip", 0.0, "no dual clip is asked for"),
        Own("objective.overlong.factor", 0.0, "slime has no shaping for length"),
        Own("optimizer.warmup_updates", 0, "none where none is asked for"),
        Own(
            "rollout.mismatch_limit", float("inf"), "slime has no limit; in bf16 single tokens differ by more than 0.01"
        ),
        Own("rollout.probe_limit", float("inf"), "as above"),
    ),
)
