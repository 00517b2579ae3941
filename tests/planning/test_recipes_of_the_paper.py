"""Every recipe that names nodes would start on them, as far as that can be known without them.

Its model divides by its layout, ranks and servers by its nodes. Megatron's model of every pipeline stage, built without memory
by one rank of it, has the parameters that the planner counts, and all of it fits. Both arms of a comparison differ in one line.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_fork import models, planning
from megatron_fork.config import RunConfig, load_config
from megatron_fork.distributed import ParallelConfig
from megatron_fork.models import ComputeConfig
from megatron_fork.recipe import different, flat
from megatron_fork.rollout import engine_kind

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SIZES = "qwen3-0.6b qwen3-1.7b qwen3-4b qwen3-8b qwen3-14b qwen3-32b qwen3-30b-a3b llama-3.1-8b".split()
RECIPES = [path for size in SIZES for path in sorted((EXAMPLES / size).rglob("*.yaml"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES).with_suffix(""))


@pytest.fixture(params=RECIPES, ids=name_of, scope="module")
def recipe(request: pytest.FixtureRequest) -> RunConfig:
    return load_config(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_both_arms(size: str) -> None:
    assert (EXAMPLES / size / "top20.yaml").is_file() and (EXAMPLES / size / "dapo.yaml").is_file()


@pytest.mark.parametrize("path", [path for path in RECIPES if path.name.startswith("dapo")], ids=name_of)
def test_the_baseline_differs_in_one_line(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 2 and lines[0].startswith("base: top20")
    paper = load_config(path.with_name(path.name.replace("dapo", "top20")))
    assert set(different(asdict(paper), asdict(load_config(path)))) == {"selection.tokens", "run.name"}


@pytest.mark.parametrize("path", sorted((EXAMPLES / "qwen3-8b" / "ablations").iterdir()), ids=name_of)
def test_an_ablation_differs_in_the_selection_alone(path: Path) -> None:
    paper = load_config(EXAMPLES / "qwen3-8b" / "top20.yaml")
    changed = set(different(asdict(paper), asdict(load_config(path))))
    assert changed <= {"selection.tokens", "selection.ratio", "run.name"} and len(changed) > 1


def test_ranks_servers_and_batches_divide(recipe: RunConfig) -> None:
    cluster, shape = recipe.cluster, planning.model_shape(recipe)
    models.check_divides(shape, recipe.parallel)
    data = recipe.parallel.data(cluster.ranks)
    assert recipe.parallel.tensor <= cluster.gpus_per_node, "tensor ranks exchange too much for a network"
    assert recipe.train.prompts_per_step % recipe.train.prompts_per_mini_batch == 0
    assert recipe.train.prompts_per_mini_batch * recipe.rollout.samples % data == 0, "every data rank has as many"
    kind = engine_kind(recipe.rollout.engine)
    assert kind.has_servers == (cluster.servers > 0)
    assert cluster.gpus_per_node % cluster.engine_tensor == 0
    assert shape.num_key_value_heads % cluster.engine_tensor == 0
    longest = recipe.data.max_prompt_tokens + recipe.rollout.max_response_tokens
    assert longest <= models.longest_sequence(shape)
    assert recipe.objective.overlong.max_response == recipe.rollout.max_response_tokens


@pytest.fixture
def no_groups() -> Iterator[None]:
    """Neither those of tests before in this process, nor of this one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    yield
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def parameters_of_stage(recipe: RunConfig, stage: int) -> int:
    """Of Megatron's model as a rank of a pipeline stage builds it, on the meta device and among ranks that answer nothing."""
    parallel: ParallelConfig = recipe.parallel
    ranks = recipe.cluster.ranks
    rank = stage * (ranks // parallel.pipeline)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        create_gloo_process_groups=False,
    )
    with torch.device("meta"):
        chunks = models.build_chunks(
            planning.model_shape(recipe), parallel, dtype=recipe.policy.dtype, compute=ComputeConfig(backend="local")
        )
    found = [parameter for chunk in chunks for parameter in chunk.parameters()]
    assert {parameter.device.type for parameter in found} == {"meta"}
    return sum(parameter.numel() for parameter in found)


@pytest.mark.usefixtures("no_groups")
@pytest.mark.filterwarnings("ignore")
def test_every_stage_is_built_under_its_layout(recipe: RunConfig) -> None:
    built = []
    for stage in range(recipe.parallel.pipeline):
        built.append(parameters_of_stage(recipe, stage))
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    assert max(built) == models.fullest_rank(planning.model_shape(recipe), recipe.parallel).total


def test_it_fits_the_gpus_that_it_names(recipe: RunConfig) -> None:
    """And has room on its engines for at least one of its longest responses."""
    found = planning.plan(recipe, planning.Question())
    found.refuse()
    assert found.own.fits and found.own.fleet.room.sequences(found.longest) >= 1
    assert found.budget >= recipe.policy.tokens_per_micro_batch


def test_each_says_what_it_is_for() -> None:
    index = (EXAMPLES.parent / "docs" / "paper_index.md").read_text()
    assert all(path.read_text().startswith("# ") for path in RECIPES)
    assert all(f"`{size}" in index for size in SIZES)


def test_the_recipes_are_what_their_folders_say() -> None:
    for path in RECIPES:
        written = yaml.safe_load(path.read_text())
        named = dict(flat(asdict(load_config(path))))["model.path"]
        assert path.parts[path.parts.index("examples") + 1].partition("-")[2] in str(named).lower(), written
