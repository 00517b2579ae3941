"""An evaluation or an intervention goes on with the same settings: all that may decide a reward are among them."""

from dataclasses import fields

from megatron_fork.rewards import RewardsConfig
from megatron_fork.run.asked import deciding


def test_every_setting_of_the_verifier_is_kept_but_those_of_how_it_runs() -> None:
    kept = deciding(RewardsConfig(kind="mine:judge", confined=False, timeout_seconds=3.0))
    assert kept["kind"] == "mine:judge" and kept["confined"] is False and kept["timeout_seconds"] == 3.0
    left_out = {field.name for field in fields(RewardsConfig)} - kept.keys()
    assert left_out == {"workers", "backlog", "failure_warning", "allow_code"}
