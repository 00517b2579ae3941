"""A loss and a weighting that cannot work together are told before anything starts, in one line with the way out."""

import numpy as np
import pytest
from support.commands import QUICKSTART

from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError
from megatron_fork.run.checks import check_settings
from megatron_fork.run.selecting import selected_tokens
from megatron_fork.selection import WEIGHTINGS, SelectionConfig

PAIRS = [
    ("stapo", "archer", "trains all candidates alike"),
    ("nat", "archer", "trains all candidates alike"),
    ("nat", "gspo", "needs all trained tokens of a response"),
]


@pytest.mark.parametrize(("weights", "loss", "reason"), PAIRS)
def test_what_does_not_combine(weights: str, loss: str, reason: str) -> None:
    config = load_config(QUICKSTART, [f"selection.weights=[{weights}]", f"objective.loss={loss}"])
    with pytest.raises(ConfigError) as error:
        check_settings(config, ranks=1)
    assert reason in error.value.message and f"objective.loss={loss}" in error.value.message
    assert "selection.weights" in error.value.message and error.value.hint and "\n" not in error.value.message


@pytest.mark.parametrize("loss", ["ppo", "gspo", "cispo", "clip_cov", "kl_cov"])
def test_everything_else_combines(loss: str) -> None:
    for weights in WEIGHTINGS:
        if (weights, loss) not in {pair[:2] for pair in PAIRS}:
            check_settings(
                load_config(QUICKSTART, [f"selection.weights=[{weights}]", f"objective.loss={loss}"]), ranks=1
            )
    together = ",".join(name for name in WEIGHTINGS if name != "nat")
    check_settings(load_config(QUICKSTART, [f"selection.weights=[{together}]", f"objective.loss={loss}"]), ranks=1)


def test_a_module_that_is_not_there_is_told() -> None:
    config = load_config(QUICKSTART, ["selection.weights=[no_such_module:weights]"])
    with pytest.raises(
        ConfigError, match=r"selection\.weights=no_such_module:weights: no_such_module cannot be imported"
    ):
        check_settings(config, ranks=1)


def test_entropies_alone_tell_the_choice_of_tokens_of_a_run_with_weights() -> None:
    """Those of other models have no advantages, which most weightings read."""
    entropy_t, lengths = np.linspace(0.0, 1.0, 20, dtype=np.float32), np.array([7, 13])
    plain = selected_tokens(entropy_t, lengths, SelectionConfig())
    assert plain.sum() == 4
    assert (selected_tokens(entropy_t, lengths, SelectionConfig(weights=["m2po", "nat"])) == plain).all()
