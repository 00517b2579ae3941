"""A model that would be computed wrongly is refused by a line that names the field, before anything is allocated."""

import pytest
from tiny_qwen3 import megatron_model, tiny_config

from megatron_fork import distributed
from megatron_fork.errors import ConfigError, LayoutError, ModelError
from megatron_fork.models import Config, build_model, check_divides, config_from_recipe


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "model architecture GPT2LMHeadModel is not known"),
        ({"architectures": None}, "model architecture none is not known"),
        ({"attention_bias": True}, "attention_bias=true is not supported"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
            "rope_type=yarn is not supported",
        ),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}}, "rope_type=linear"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "use_sliding_window=true"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported"),
    ],
)
def test_unsupported_fields_are_named(fields: dict, named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught, megatron_model(tiny_config(**fields), None):
        raise AssertionError("the model was built")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("parallel", "named"),
    [
        ({"tensor": 4}, "parallel.tensor=4 does not divide the model's num_key_value_heads=2"),
        ({"tensor": 3}, "parallel.tensor=3 does not divide the model's num_attention_heads=4"),
        ({"pipeline": 3}, "parallel.pipeline=3 does not divide the model's num_hidden_layers=2"),
    ],
)
def test_sizes_that_do_not_divide_are_named(parallel: dict, named: str) -> None:
    with pytest.raises(LayoutError, match=named):
        check_divides(tiny_config(), distributed.Config(**parallel))
    with pytest.raises(LayoutError, match=named):
        build_model(tiny_config(), distributed.Config(**parallel))


def test_config_from_a_recipe() -> None:
    config = config_from_recipe({"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "rope_theta": 5e5})
    assert (config.hidden_size, config.num_hidden_layers) == (64, 3)
    assert config.rope_parameters["rope_theta"] == 5e5
    for fields, named in (
        ({"model_type": "qwen3", "hiden_size": 64}, "model.hf_config.hiden_size is not a field of Qwen3Config"),
        ({"model_type": "nonsense"}, "model.hf_config.model_type=nonsense is not known"),
        ({"hidden_size": 64}, "model.hf_config.model_type=None is not known"),
    ):
        with pytest.raises(ConfigError, match=named):
            config_from_recipe(fields)
    with pytest.raises(ConfigError, match=r"model\.path and model\.hf_config are both given"):
        Config(path="somewhere", hf_config={"model_type": "qwen3"})
