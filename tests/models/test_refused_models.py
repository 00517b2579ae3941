"""A model that would be computed wrongly is refused by a line that names the field, before anything is allocated."""

import pytest
from support.tiny_qwen3 import family_config, megatron_model, tiny_config

from megatron_fork import distributed
from megatron_fork.errors import ConfigError, LayoutError, ModelError
from megatron_fork.models import ModelConfig, build_model, check_divides, config_from_recipe, family_of


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "model architecture GPT2LMHeadModel is not known"),
        ({"architectures": None}, "model architecture none is not known"),
        ({"attention_bias": True}, "attention_bias=true is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}}, "rope_type=dynamic"),
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
    ("family", "fields", "named"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported for Qwen3MoeForCausalLM"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\] is not supported"),
        ("qwen3_moe", {"num_experts_per_tok": 1}, "norm_topk_prob=true is not supported with num_experts_per_tok=1"),
        ("qwen3_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok=5 is more than num_experts=4"),
        ("qwen3_moe", {"attention_bias": True}, "attention_bias=true is not supported"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window=true is not supported"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=true is not supported for Qwen2ForCausalLM"),
        ("llama", {"attention_bias": True}, "attention_bias=true is not supported for LlamaForCausalLM"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu is not supported"),
    ],
)
def test_unsupported_fields_of_other_families_are_named(family: str, fields: dict, named: str) -> None:
    config = family_config(family, **fields)
    with pytest.raises(ModelError, match=named) as caught:
        family_of(config)
    assert caught.value.hint
    with pytest.raises(ModelError, match=named):
        build_model(config, distributed.ParallelConfig())


@pytest.mark.parametrize(
    ("family", "parallel", "named"),
    [
        ("qwen3_moe", {"expert": 3}, "parallel.expert=3 does not divide the model's num_experts=4"),
        ("qwen3_moe", {"expert_tensor": 5}, "parallel.expert_tensor=5 does not divide .* moe_intermediate_size=24"),
        ("qwen3_moe", {"tensor": 2}, "parallel.expert_tensor=1 with parallel.expert=1 and tensor=2"),
        (
            "qwen3_moe",
            {"tensor": 2, "expert_tensor": 2},
            "parallel.tensor=2 with parallel.sequence=false for a mixture of experts",
        ),
        ("qwen3", {"expert": 2}, "parallel.expert=2, but the model has no experts"),
        ("llama", {"expert_tensor": 2}, "parallel.expert_tensor=2, but the model has no experts"),
    ],
)
def test_experts_that_do_not_divide_are_named(family: str, parallel: dict, named: str) -> None:
    with pytest.raises(LayoutError, match=named) as caught:
        build_model(family_config(family), distributed.ParallelConfig(**parallel))
    assert caught.value.hint


def test_the_dense_width_of_a_mixture_of_experts_need_not_divide() -> None:
    check_divides(
        family_config("qwen3_moe", intermediate_size=47),
        distributed.ParallelConfig(tensor=2, expert_tensor=2, sequence=True),
    )


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
        check_divides(tiny_config(), distributed.ParallelConfig(**parallel))
    with pytest.raises(LayoutError, match=named):
        build_model(tiny_config(), distributed.ParallelConfig(**parallel))


def test_config_from_a_recipe() -> None:
    config = config_from_recipe({"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "rope_theta": 5e5})
    assert (config.hidden_size, config.num_hidden_layers) == (64, 3)
    assert config.rope_parameters["rope_theta"] == 5e5
    config = config_from_recipe({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2})
    assert (config.architectures, config.num_experts) == (["Qwen3MoeForCausalLM"], 4)
    for fields, named in (
        ({"model_type": "qwen3", "hiden_size": 64}, "model.hf_config.hiden_size is not a field of Qwen3Config"),
        ({"model_type": "nonsense"}, "model.hf_config.model_type=nonsense is not known"),
        ({"hidden_size": 64}, "model.hf_config.model_type=None is not known"),
    ):
        with pytest.raises(ConfigError, match=named):
            config_from_recipe(fields)
    with pytest.raises(ConfigError, match=r"model\.path and model\.hf_config are both given"):
        ModelConfig(path="somewhere", hf_config={"model_type": "qwen3"})
