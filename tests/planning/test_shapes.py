"""A recipe's model is known without its folder: by the folder's name, as it was published, to the last parameter."""

from pathlib import Path

import pytest

from megatron_fork import models, planning
from megatron_fork.config import RunConfig
from megatron_fork.errors import ModelError
from megatron_fork.models import ModelConfig

# Of the published weights; tied tables count once.
PARAMETERS = {
    "Qwen3-0.6B-Base": 596_049_920,
    "Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen3-4B-Base": 4_022_468_096,
    "Qwen3-8B-Base": 8_190_735_360,
    "Qwen3-14B-Base": 14_768_307_200,
    "Qwen3-32B-Base": 32_762_123_264,
    "Qwen3-30B-A3B-Base": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Llama-3.1-8B": 8_030_261_248,
}


def recipe(path: str) -> RunConfig:
    return RunConfig(model=ModelConfig(path=path))


def test_every_shape_has_a_count_to_hold_it_to() -> None:
    assert set(planning.known_shapes()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_is_that_of_the_published_weights(name: str) -> None:
    assert models.count_parameters(planning.model_shape(recipe(f"models/{name}"))) == PARAMETERS[name]


@pytest.mark.parametrize(
    "path", ["Qwen3-8B-Base", "models/qwen3-8b", "/elsewhere/Qwen3-8B/", "runs/Qwen3-8B-cold/model"]
)
def test_a_folder_of_the_path_names_the_shape(path: str) -> None:
    assert planning.shape_name(ModelConfig(path=path)) == "Qwen3-8B-Base"


def test_a_folder_that_exists_is_read(tmp_path: Path) -> None:
    """Also if its name is that of a published model: it may be a smaller one."""
    folder = tmp_path / "Qwen3-8B"
    folder.mkdir()
    config = planning.model_shape(recipe("Qwen3-0.6B"))
    config.num_hidden_layers = 2
    config.layer_types = None
    config.save_pretrained(folder)
    assert planning.shape_name(ModelConfig(path=str(folder))) is None
    assert planning.model_shape(recipe(str(folder))).num_hidden_layers == 2


def test_fields_in_the_recipe_need_no_folder() -> None:
    config = RunConfig(model=ModelConfig(hf_config={"model_type": "qwen3", "hidden_size": 64, "vocab_size": 32}))
    assert planning.model_shape(config).hidden_size == 64


def test_an_unknown_model_without_a_folder_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.path=models/Mine is not a folder") as caught:
        planning.model_shape(recipe("models/Mine"))
    assert "Qwen3-32B-Base" in caught.value.hint
