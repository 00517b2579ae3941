"""Settings that cannot be meant are refused with the field, its value and a way out, in Python and in a recipe."""

from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_fork.errors import ConfigError
from megatron_fork.objective import Archer, EntropyShaping, Gae, ObjectiveConfig


@pytest.mark.parametrize(
    ("cls", "fields", "named"),
    [
        (ObjectiveConfig, {"loss": "pppo"}, "objective.loss=pppo is not one of ppo"),
        (ObjectiveConfig, {"advantage": "best"}, "objective.advantage=best"),
        (ObjectiveConfig, {"average": "median"}, "objective.average=median"),
        (ObjectiveConfig, {"denominator": "some"}, "objective.denominator=some"),
        (ObjectiveConfig, {"kl_estimator": "k4"}, "objective.kl_estimator=k4"),
        (ObjectiveConfig, {"correction": "mis"}, "objective.correction=mis"),
        (ObjectiveConfig, {"clip_high": float("nan")}, "objective.clip_high=nan"),
        (ObjectiveConfig, {"kl_coef": -1.0}, "objective.kl_coef=-1.0"),
        (ObjectiveConfig, {"cov_kl_coef": -1.0}, "objective.cov_kl_coef=-1.0"),
        (ObjectiveConfig, {"loss": "gspo", "clip_low": 1.5}, "objective.clip_low=1.5"),
        (ObjectiveConfig, {"average": "constant"}, "objective.average=constant with constant_length=0"),
        (ObjectiveConfig, {"constant_length": -3}, "objective.constant_length=-3"),
        (ObjectiveConfig, {"cov_share": 0.0}, "objective.cov_share=0.0"),
        (ObjectiveConfig, {"cov_share": 1.5}, "objective.cov_share=1.5"),
        (ObjectiveConfig, {"cov_low": 5.0}, "objective.cov_low=5.0 is not below cov_high=5.0"),
        (ObjectiveConfig, {"sequence_low": 1.1, "sequence_high": 1.2}, "objective.sequence_low=1.1"),
        (ObjectiveConfig, {"sequence_high": 0.999}, "sequence_high=0.999"),
        (EntropyShaping, {"alpha": -0.4}, "objective.entropy_shaping.alpha=-0.4"),
        (EntropyShaping, {"kappa": 1.0}, "objective.entropy_shaping.kappa=1.0"),
        (Archer, {"forking_clip_low": 1.0}, "objective.archer.forking_clip_low=1.0"),
        (Archer, {"forking_clip_high": -0.5}, "objective.archer.forking_clip_high=-0.5"),
        (Archer, {"forking_kl": -0.5}, "objective.archer.forking_kl=-0.5"),
        (Gae, {"gamma": 1.5}, "objective.gae.gamma=1.5"),
        (Gae, {"lam": -0.1}, "objective.gae.lam=-0.1"),
        (Gae, {"value_clip": -0.1}, "objective.gae.value_clip=-0.1"),
    ],
)
def test_bad_settings_are_named(cls: type, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(**fields)
    assert named in caught.value.message and caught.value.hint


def test_cispo_alone_may_have_no_lower_bound() -> None:
    assert ObjectiveConfig(loss="cispo", clip_low=10.0).clip_low == 10.0


def read(tree: dict[str, Any]) -> ObjectiveConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ObjectiveConfig), OmegaConf.create(tree)))


def test_a_recipe_reaches_every_nested_field() -> None:
    found = read({"loss": "archer", "archer": {"forking_kl": 0.5}, "gae": {"lam": 0.9}, "kl_coef": 1})
    assert (found.archer.forking_kl, found.gae.lam, found.kl_coef) == (0.5, 0.9, 1.0)
    assert read(OmegaConf.to_container(OmegaConf.structured(found))) == found
    with pytest.raises(ConfigError, match=r"objective\.loss=pppo"):
        read({"loss": "pppo"})
    with pytest.raises(OmegaConfBaseException):
        read({"average": "median"})
