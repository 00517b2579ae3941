"""The quickstart under torchrun, on every layout the README names: same first step as on one rank, and it ends in order.

Rollouts come from seeds of their own, so that from one warm start all layouts sample the same responses.
"""

from pathlib import Path

import pytest
from commands import QUICKSTART, TINY, metrics_of, run

LAYOUTS = {
    "tensor": ["parallel.tensor=2"],
    "pipeline": ["parallel.pipeline=2"],
    "data": [],
    "context": ["parallel.context=2"],
    "tensor with sequence": ["parallel.tensor=2", "parallel.sequence=true"],
}
COMPARED = (
    "loss",
    "gradient_norm",
    "selection/threshold",
    "selection/selected",
    "rollout/response_tokens",
    "entropy/mean",
)
STEPS = [word for word in TINY if not word.startswith(("sft.", "train.steps"))] + ["train.steps=1"]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    code, output = run("train", str(QUICKSTART), *STEPS, "sft.steps=40", f"run.folder={folder}")
    assert code == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_first_step(name: str, one_rank: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*STEPS, "sft.steps=0", "model.hf_config=null", f"model.path={one_rank / 'warm_start'}"]
    code, output = run("train", str(QUICKSTART), *words, *LAYOUTS[name], f"run.folder={folder}", ranks=2)
    assert code == 0, output
    ours, theirs = (metrics_of(each, "train")[0] for each in (folder, one_rank))
    assert {key: ours[key] for key in COMPARED} == pytest.approx({key: theirs[key] for key in COMPARED}, rel=1e-5)
    assert (folder / "report.html").is_file() and (folder / "summary.json").is_file()
