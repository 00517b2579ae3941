"""What a conversion wrote loads under TP=8 x PP=2 as it is: any of the 16 ranks finds exactly its shards."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from megatron.core import dist_checkpointing, parallel_state
from support.tiny_qwen3 import family_config, hugging_face_model
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_fork import distributed
from megatron_fork.conversion import load_hf, to_megatron
from megatron_fork.models import build_model


def stands_as(rank: int, theirs: Path, megatron: Path, place: int, meeting: Path) -> None:
    """As one rank of 16, most of which are absent: its model is built, and loaded from both folders."""
    config = family_config("qwen3", **WIDE)
    dist.init_process_group("fake", rank=rank, world_size=16, store=FakeStore())
    parallel_state.initialize_model_parallel(8, 2, create_gloo_process_groups=False)
    layout = distributed.ParallelConfig(tensor=8, pipeline=2)
    wanted, found = build_model(config, layout), build_model(config, layout)
    load_hf(wanted, theirs)
    state = found.sharded_state_dict()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    # Megatron's reader reads each rank's own shards; it only needs another rank to speak with.
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=place, world_size=2)
    loaded = dist_checkpointing.load({"model": state}, str(megatron), validate_access_integrity=False)["model"]
    found.load_state_dict(loaded)
    ours, reference = dict(found.named_parameters()), dict(wanted.named_parameters())
    assert ours.keys() == reference.keys() and len(ours) > 10
    for name, parameter in reference.items():
        assert torch.equal(ours[name], parameter), name


WIDE = {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 4, "tie_word_embeddings": False}


@pytest.mark.parametrize("ranks", [(0, 15), (7, 8)])
def test_ranks_of_tensor_8_and_pipeline_2_load_their_shards(ranks: tuple[int, int], tmp_path: Path) -> None:
    hugging_face_model(family_config("qwen3", **WIDE)).save_pretrained(tmp_path / "theirs")
    to_megatron(tmp_path / "theirs", tmp_path / "megatron")
    context = multiprocessing.get_context("forkserver")
    folders = (tmp_path / "theirs", tmp_path / "megatron" / "release")
    processes = [
        context.Process(target=stands_as, args=(rank, *folders, place, tmp_path / "meeting"))
        for place, rank in enumerate(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
