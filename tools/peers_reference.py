"""Write the tables of docs/coming_from.md from those of `megatron_fork.planning`; `tests/planning` compares them.

python tools/peers_reference.py
"""

from __future__ import annotations

from pathlib import Path

from megatron_fork.planning import PEERS, reference

PAGE = Path(__file__).parent.parent / "docs" / "coming_from.md"
HEAD = """# Coming from verl, slime, NeMo-RL or TRL

    megatron-fork plan --from verl my_dapo.sh
    megatron-fork plan --from nemo-rl my_grpo.yaml --write my_recipe.yaml

reads a file of settings of another trainer and puts its names and sizes beside those of a recipe. Every value of the file
appears once: with the field that it becomes, or with the reason why it has none. What is lost, or means something else
here, is marked. `--write` writes a recipe that `megatron-fork doctor` and `train` accept.

Files are read, and never run. In scripts, variables, arrays, `${NAME:-default}` and whole-number arithmetic are followed;
what only a shell can know (the environment, `$(command)`, what an `if` or a loop sets) is named as not known. Files that a
script reads with `source` are not read. Values that look like keys or passwords are not shown. A file in which the
named trainer has no setting, and another has, is refused with the other's name.

## What differs most

* **Prompts or samples.** `train.prompts_per_step` and `train.prompts_per_mini_batch` count prompts, as verl does. slime's
  `--global-batch-size` and NeMo-RL's `train_global_batch_size` count samples; TRL's `per_device_train_batch_size` counts
  samples of one device. They are divided by the samples of a prompt.
* **Warm-up.** `optimizer.warmup_updates` counts optimizer steps, as slime and TRL do. verl and NeMo-RL move their schedule
  once a rollout step: ten warm-up steps with 16 mini-batches are 160 updates here.
* **Steps.** `train.steps` counts rollout batches, as all but TRL do, whose `max_steps` counts optimizer steps.
* **Averages.** `objective.average=token` is over all tokens of a mini-batch, whatever the ranks and micro-batches. slime
  averages over each response first unless `--calculate-per-token-loss` is given.
* **Defaults.** What a file does not write has the other trainer's default in the written recipe, not this project's. So no
  tokens are selected (`selection.tokens=all`), and groups without signal are replaced only where the file asks for it.
* **Colocated engines** are vLLM here, and the policy stays on the GPU beside them. SGLang runs as servers.
* **Names** of models and published data sets are folders and files here: nothing is downloaded.

The tables are made by `python tools/peers_reference.py` from those that the command uses; a test compares. The names were read
in the trainers' repositories, in their states of 2026; a name that a table does not know is said to be unknown.

"""


def markdown() -> str:
    """The page: what differs, and a section a trainer."""
    return HEAD + "\n".join(reference(table) for table in PEERS.values())


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
