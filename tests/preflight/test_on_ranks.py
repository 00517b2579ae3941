"""Ranks that meet: their round trip is timed, their versions compared, and a folder that only some of them see is refused."""

import os
from pathlib import Path

import pytest
from support.commands import QUICKSTART, run
from support.ranks import run_on_ranks

from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.errors import MegatronForkError
from megatron_fork.preflight.disk import disk, scratch


def folder_findings(folders: list[str]) -> list[str] | str:
    """Each rank works in a folder of its own, as on nodes that share no file system."""
    import torch.distributed as dist

    os.chdir(folders[dist.get_rank()])
    config = load_config(QUICKSTART, ["run.folder=here/run"])
    try:
        with scratch(config) as folder:
            return [finding.name for finding in disk(config, resolve_config(config.model), folder)]
    except MegatronForkError as error:
        return error.message


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_shared_folder_that_is_not_shared(is_shared: bool, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / ("one" if is_shared else "other")]
    for folder in folders:
        (folder / "here").mkdir(parents=True, exist_ok=True)
    of_first, of_second = run_on_ranks(folder_findings, 2, [str(folder) for folder in folders])
    if is_shared:
        assert "shared folder" in of_first and "shared folder" in of_second
    else:
        assert of_first == of_second
        assert "run.folder=here/run is not the same folder for all ranks: rank 1 on " in of_first
    assert not list((tmp_path / "one" / "here").iterdir())


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    words = ("doctor", str(QUICKSTART), "parallel.context=2", f"run.folder={tmp_path / 'run'}")
    code, output = run(*words, ranks=2)
    assert code == 0, output
    for name in (
        "ranks met: 2 ranks",
        "all-reduce: ",
        "send around all ranks: ",
        "networks: the recipe's",
        "context 2",
    ):
        assert name in output
    assert "0 to fix" in output and not list(tmp_path.iterdir())
    code, output = run(*words, "data.source=absent.jsonl", ranks=2)
    assert code != 0 and output.count("error: ") == 1 and "absent.jsonl" in output
