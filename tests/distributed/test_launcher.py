"""Processes that a launcher started together are ranks of one run, whatever it calls its variables, or are refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.distributed.launcher import Launch, another_prints, first_host, launch
from megatron_fork.errors import LayoutError

STEP = {
    "SLURM_JOB_ID": "42",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],login1",
    "SLURM_JOB_NUM_NODES": "4",
}


def of_slurm(rank: int, ranks: int) -> dict[str, str]:
    return {
        **STEP,
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(ranks),
        "SLURM_STEP_NUM_TASKS": str(ranks),
        "SLURM_LOCALID": str(rank % 2),
    }


def of_mpi(rank: int, ranks: int) -> dict[str, str]:
    meeting = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    local = {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank % 2)}
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(ranks), **local, **meeting}


def of_hydra(rank: int, ranks: int) -> dict[str, str]:
    meeting = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    return {"PMI_RANK": str(rank), "PMI_SIZE": str(ranks), "MPI_LOCALRANKID": str(rank % 2), **meeting}


def of_torchrun(rank: int, ranks: int) -> dict[str, str]:
    meeting = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    return {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank % 2), **meeting}


@given(ranks=st.integers(2, 1000), data=st.data(), variables=st.sampled_from([of_slurm, of_mpi, of_hydra, of_torchrun]))
def test_every_launcher_s_ranks_are_ranks(ranks: int, data: st.DataObject, variables) -> None:
    rank = data.draw(st.integers(0, ranks - 1))
    found = launch(variables(rank, ranks))
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank) == (rank, ranks, rank % 2)
    assert found.address and found.port
    assert launch(found.variables) == Launch("torchrun", rank, ranks, rank % 2, found.address, found.port)


def test_ranks_of_a_slurm_step_meet_at_its_first_node_and_other_steps_elsewhere() -> None:
    places = [launch(of_slurm(rank, 4)) for rank in range(4)]
    assert {(place.address, place.port) for place in places if place} == {("gpu07", places[0].port)}
    other = launch({**of_slurm(0, 4), "SLURM_STEP_ID": "4"})
    assert other is not None and other.port != places[0].port
    one_node = launch({**of_slurm(0, 4), "SLURM_STEP_NUM_NODES": "1"})
    assert one_node is not None and one_node.address == "127.0.0.1"
    chosen = launch({**of_slurm(0, 4), "MASTER_ADDR": "n9", "MASTER_PORT": "1234"})
    assert chosen is not None and (chosen.address, chosen.port) == ("n9", 1234)


def test_torchrun_within_a_slurm_step_is_torchrun_s() -> None:
    found = launch({**of_slurm(1, 2), **of_torchrun(5, 8)})
    assert found is not None and (found.launcher, found.rank, found.world_size) == ("torchrun", 5, 8)


@pytest.mark.parametrize(
    "alone", [{}, of_slurm(0, 1), of_mpi(0, 1), {"SLURM_NTASKS": "8"}, {"RANK": "", "WORLD_SIZE": " "}]
)
def test_a_process_alone_is_none_of_many(alone: dict[str, str]) -> None:
    assert launch(alone) is None


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2"),
        ({**of_slurm(0, 2), "SLURM_STEP_NODELIST": ""}, "MASTER_ADDR is not set"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "n1"}, "MASTER_PORT is not set"),
        ({"RANK": "0"}, "did not set WORLD_SIZE"),
        ({"WORLD_SIZE": "4"}, "did not set RANK"),
        ({"RANK": "", "WORLD_SIZE": "4"}, "did not set RANK"),
        ({"RANK": "zero", "WORLD_SIZE": "4"}, "RANK='zero' is not a number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 is not a rank of a world of 4"),
        ({**of_torchrun(0, 2), "MASTER_PORT": "abc"}, "MASTER_PORT='abc' is not a number"),
        ({**of_torchrun(0, 2), "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a port"),
        ({**of_torchrun(0, 2), "LOCAL_RANK": "x"}, "LOCAL_RANK='x' is not a number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(variables: dict[str, str], named: str) -> None:
    with pytest.raises(LayoutError, match=named) as caught:
        launch(variables)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[3-5]", "n3"),
        ("n[007,9],m", "n007"),
        ("rack[1-2]n[04-08],x", "rack1n04"),
        ("a-b[1-2].site.org", "a-b1.site.org"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("variables", "told_by_another"),
    [
        ({"RANK": "a", "WORLD_SIZE": "2"}, False),
        ({"RANK": "2", "WORLD_SIZE": "2"}, False),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1.5", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, False),
        ({"WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "0"}, False),
        ({"RANK": "1", "WORLD_SIZE": "0"}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "x"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "abc"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "abc"}, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "64"}, False),
        ({"OMPI_COMM_WORLD_RANK": "63", "OMPI_COMM_WORLD_SIZE": "64"}, True),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, True),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "2"}, False),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, False),
    ],
)
def test_somebody_says_what_is_wrong_and_not_everybody(variables: dict[str, str], told_by_another: bool) -> None:
    with pytest.raises(LayoutError):
        launch(variables)
    assert another_prints(variables) == told_by_another
