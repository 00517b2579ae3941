"""A file of another trainer says the same in a recipe's words: sizes in our units, their defaults where they are silent.

Every number below follows from what the trainers' own code does with their settings: which of them count prompts, samples or
devices, and whether a schedule moves with optimizer steps or with rollout steps.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fork.cli.coming_from import show_translation
from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError
from megatron_fork.planning import PEERS, Translation, translate

VERL = """
set -x
steps=${STEPS:-100}
length=$((1024 * 4))
python3 -m verl.trainer.main_ppo --config-name=ppo_megatron_trainer \\
    data.train_batch_size=512 data.max_prompt_length=1024 \\
    data.max_response_length=${length} data.train_files="$HOME/prompts.parquet" \\
    actor_rollout_ref.model.path=/models/base \\
    actor_rollout_ref.rollout.n=16 actor_rollout_ref.actor.ppo_mini_batch_size=32 \\
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \\
    actor_rollout_ref.actor.clip_ratio_high=0.28 \\
    actor_rollout_ref.actor.use_kl_loss=False actor_rollout_ref.actor.kl_loss_coef=0.5 \\
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum \\
    algorithm.adv_estimator=grpo algorithm.use_kl_in_reward=True \\
    +algorithm.filter_groups.enable=True algorithm.filter_groups.max_num_gen_batches=0 \\
    +reward_model.reward_kwargs.overlong_buffer_cfg.enable=True \\
    +reward_model.reward_kwargs.overlong_buffer_cfg.len=512 \\
    +reward_model.reward_kwargs.overlong_buffer_cfg.penalty_factor=0.5 \\
    trainer.total_training_steps=$steps trainer.logger="['console','wandb']" trainer.project_name=forks \\
    trainer.nnodes=4 trainer.resume_mode=auto "$@"  # the rest
"""
SLIME = """
ROLLOUT=(
   --rollout-batch-size 64
   --n-samples-per-prompt 8   # of each
   --rollout-max-response-len 8192 --rollout-temperature 0.8
   --global-batch-size 256
   #--num-rollout 7
)
ray job submit -- python3 train.py --actor-num-nodes 2 ${ROLLOUT[@]} \\
   --hf-checkpoint /models/base --lr 2e-6 --lr-warmup-iters 5 --eps-clip 0.2 --num-rollout 300 \\
   --rollout-num-gpus 8 --rollout-num-gpus-per-engine 2 --use-kl-loss --kl-loss-coef 0.01 --wandb-key abc123 --qkv-format thd
"""
NEMO = """
grpo: {num_prompts_per_step: 64, num_generations_per_prompt: 16, max_num_steps: 50, use_dynamic_sampling: true,
  normalize_rewards: true, use_leave_one_out_baseline: false, adv_estimator: {name: grpo}}
loss_fn: {ratio_clip_min: 0.1, ratio_clip_max: 0.3, ratio_clip_c: null, reference_policy_kl_penalty: 0.01}
policy:
  model_name: /models/base
  train_global_batch_size: 256
  max_total_sequence_length: 4096
  megatron_cfg:
    enabled: true
    tensor_model_parallel_size: 2
    sequence_parallel: true
    optimizer: {lr: 3.0e-7, clip_grad: "${policy.max_grad_norm}"}
    scheduler: {lr_warmup_iters: 10}
  sequence_packing: {train_mb_tokens: "${mul:${policy.max_total_sequence_length}, 4}"}
  max_grad_norm: 0.5
  optimizer: {kwargs: {lr: 9.0e-1}}
  generation: {backend: vllm, vllm_cfg: {tensor_parallel_size: 4},
    colocated: {enabled: false, resources: {num_nodes: 2, gpus_per_node: 8}}}
cluster: {num_nodes: 6, gpus_per_node: 8}
unheard_of: 1
"""
TRL = """
import os
from trl import GRPOConfig, GRPOTrainer
PROMPTS = 4
args = GRPOConfig(
    output_dir="out", per_device_train_batch_size=PROMPTS * 8, gradient_accumulation_steps=2, steps_per_generation=8,
    num_generations=16, max_steps=400, epsilon=0.1, loss_type="dr_grpo", max_completion_length=512, seed=os.getpid(),
    top_entropy_quantile=0.2, temperature=0.9,
)
trainer = GRPOTrainer(model="models/base", args=args)
"""


def translated(tmp_path: Path, peer: str, name: str, text: str) -> Translation:
    file = tmp_path / name
    file.write_text(text)
    return translate(peer, file)


def kinds(found: Translation) -> dict[str, str]:
    return {row.theirs: row.kind for row in found.rows if row.theirs}


def test_verl(tmp_path: Path) -> None:
    found = translated(tmp_path, "verl", "run.sh", VERL)
    expected: dict[str, Any] = {
        "train.prompts_per_step": 512,
        "train.prompts_per_mini_batch": 32,
        "train.steps": 100,
        "rollout.samples": 16,
        "rollout.max_response_tokens": 4096,
        "rollout.dynamic_sampling": True,
        "optimizer.warmup_updates": 160,  # ten rollout steps of 16 updates
        "optimizer.weight_decay": 0.01,
        "objective.clip_low": 0.2,
        "objective.clip_high": 0.28,
        "objective.dual_clip": 3.0,
        "objective.kl_coef": 0.0,
        "objective.average": "constant",
        "objective.constant_length": 1,
        "objective.overlong.factor": 0.5,
        "objective.overlong.cache": 512,
        "run.wandb": "forks",
        "cluster.nodes": 4,
        "selection.tokens": "all",
        "policy.precision": "bf16",
    }
    assert {name: found.fields[name] for name in expected} == expected
    assert kinds(found)["data.train_files"] == "missing" and kinds(found)["$@"] == "missing"
    assert kinds(found)["algorithm.use_kl_in_reward"] == "missing"
    assert kinds(found)["algorithm.filter_groups.max_num_gen_batches"] == "missing"
    assert kinds(found)["trainer.resume_mode"] == "unused"
    assert any("rollout steps" in each for each in found.warnings)


def test_slime(tmp_path: Path) -> None:
    found = translated(tmp_path, "slime", "run.sh", SLIME)
    expected: dict[str, Any] = {
        "train.prompts_per_step": 64,
        "train.prompts_per_mini_batch": 32,  # 256 samples
        "train.steps": 300,
        "rollout.samples": 8,
        "rollout.temperature": 0.8,
        "rollout.engine": "sglang",
        "optimizer.warmup_updates": 5,
        "objective.average": "sequence",
        "objective.clip_low": 0.2,
        "objective.clip_high": 0.2,
        "objective.kl_coef": 0.01,
        "objective.kl_estimator": "k1",
        "cluster.nodes": 2,
        "cluster.engine_nodes": 1,
        "cluster.engine_tensor": 2,
        "seed": 42,
    }
    assert {name: found.fields[name] for name in expected} == expected
    assert kinds(found)["--qkv-format"] == "missing"
    assert "abc123" not in str(found.rows)


def test_nemo_rl(tmp_path: Path) -> None:
    found = translated(tmp_path, "nemo-rl", "grpo.yaml", NEMO)
    expected: dict[str, Any] = {
        "train.prompts_per_step": 64,
        "train.prompts_per_mini_batch": 16,
        "optimizer.warmup_updates": 40,  # ten rollout steps of four updates
        "optimizer.learning_rate": 3.0e-7,
        "optimizer.clip_gradient": 0.5,
        "policy.tokens_per_micro_batch": 16384,
        "objective.clip_low": 0.1,
        "objective.clip_high": 0.3,
        "objective.dual_clip": 0.0,
        "parallel.tensor": 2,
        "parallel.sequence": True,
        "rollout.engine": "vllm",
        "cluster.nodes": 4,
        "cluster.engine_nodes": 2,
        "cluster.engine_tensor": 4,
    }
    assert {name: found.fields[name] for name in expected} == expected
    assert kinds(found)["unheard_of"] == "missing" and kinds(found)["policy.optimizer.kwargs.lr"] == "unused"


def test_nemo_rl_extends_files(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(NEMO)
    text = "defaults: base.yaml\ngrpo: {num_prompts_per_step: 128}\n"
    found = translated(tmp_path, "nemo-rl", "mine.yaml", text)
    assert found.fields["train.prompts_per_step"] == 128 and found.fields["rollout.samples"] == 16
    missing = translated(tmp_path, "nemo-rl", "other.yaml", text.replace("base", "gone"))
    assert "gone.yaml is not there" in missing.remarks[0]


def test_trl(tmp_path: Path) -> None:
    found = translated(tmp_path, "trl", "train.py", TRL)
    expected: dict[str, Any] = {
        "train.prompts_per_step": 16,  # 32 samples a device, 8 batches, 16 samples a prompt
        "train.prompts_per_mini_batch": 4,
        "train.steps": 100,  # 400 optimizer steps of four a rollout step
        "objective.average": "constant",
        "objective.constant_length": 512,
        "objective.clip_low": 0.1,
        "objective.clip_high": 0.1,
        "selection.tokens": "top",
        "selection.ratio": 0.2,
        "selection.preset": "trl",
        "model.path": "models/base",
        "rollout.engine": "embedded",
    }
    assert {name: found.fields[name] for name in expected} == expected
    assert kinds(found)["seed"] == "missing"
    assert any(each.startswith("num_processes=1") for each in found.warnings)


@pytest.mark.parametrize(
    ("peer", "name", "text"),
    [("verl", "run.sh", VERL), ("slime", "run.sh", SLIME), ("nemo-rl", "a.yaml", NEMO), ("trl", "train.py", TRL)],
)
def test_the_written_recipe_has_these_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], peer: str, name: str, text: str
) -> None:
    found = translated(tmp_path, peer, name, text)
    recipe = tmp_path / "mine.yaml"
    show_translation(peer, tmp_path / name, write=recipe)
    config = load_config(recipe)
    for dotted, expected in found.fields.items():
        value: Any = config
        for part in dotted.split("."):
            value = getattr(value, part)
        assert value == expected, dotted
    printed = capsys.readouterr().out
    for row in found.rows:
        assert row.theirs in printed
    with pytest.raises(ConfigError, match="there already"):
        show_translation(peer, tmp_path / name, write=recipe)
    show_translation(peer, tmp_path / name, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert len(record["rows"]) == len(found.rows) and record["refusal"] is None


def test_a_recipe_that_would_be_refused_is_shown_but_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "data.train_batch_size=8 actor_rollout_ref.actor.ppo_mini_batch_size=16 actor_rollout_ref.model.path=m\n"
    file = tmp_path / "run.sh"
    file.write_text(text)
    show_translation("verl", file)
    assert "refused: train.prompts_per_mini_batch=16" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="nothing was written"):
        show_translation("verl", file, write=tmp_path / "mine.yaml")
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("peer", "name", "text", "said"),
    [
        ("openrlhf", "a.yaml", "a: 1", "openrlhf is not a trainer"),
        ("verl", "a.yaml", "data: {train_batch_size: many}", "data.train_batch_size=many is not a whole number"),
        ("verl", "a.yaml", "data: {train_batch_size: true}", "data.train_batch_size=True is not a whole number"),
        ("verl", "a.yaml", "data: {train_batch_size: 1.5}", "data.train_batch_size=1.5 is not a whole number"),
        ("verl", "a.yaml", "actor_rollout_ref: {actor: {optim: {lr: [1]}}}", "lr=.* is not a number"),
        ("verl", "a.yaml", "- 1", "holds no mapping"),
        ("verl", "a.yaml", "a: [", "not readable YAML"),
        ("verl", "a.yaml", "a.b: 1\na: {b: 2}", "a.b is given twice"),
        ("verl", "a.sh", "echo nothing", "has no settings of verl"),
        ("verl", "a.py", "x = 1", "is a Python file"),
        ("trl", "a.py", "GRPOConfig(", "not a readable Python file"),
        ("trl", "a.py", "GRPOConfig(seed=1)\nGRPOConfig(seed=2)", "has 2 calls of GRPOConfig"),
        ("nemo-rl", "a.yaml", "defaults: a.yaml\ngrpo: {seed: 1}", "extends itself"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, peer: str, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        translated(tmp_path, peer, name, text)
    assert refused.value.hint and "\n" not in refused.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        translate("verl", tmp_path / "none.yaml")
    (tmp_path / "bytes.sh").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        translate("verl", tmp_path / "bytes.sh")


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    translated(
        tmp_path, "verl", "a.sh", f"x=$(touch {flag})\npython -m verl.trainer data.seed=$(touch {flag}) `touch {flag}`"
    )
    translated(tmp_path, "trl", "a.py", f"open({str(flag)!r}, 'w')\nGRPOConfig(seed=open({str(flag)!r}, 'w'))")
    assert not flag.exists()


def test_docs_are_made_of_the_tables() -> None:
    tool = Path(__file__).parents[2] / "tools" / "peers_reference.py"
    spec = importlib.util.spec_from_file_location("peers_reference", tool)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PAGE.read_text(encoding="utf-8") == made.markdown()
    assert set(PEERS) == {"verl", "slime", "nemo-rl", "trl"}
