"""Logits take what is set, or a quarter of a GPU's free memory at most; on a CPU they do not depend on what is free."""

import pytest
import torch

from megatron_fork.vocab_parallel import VocabParallelConfig, free_memory


@pytest.mark.parametrize(
    ("free_mib", "chunk_mib", "expected_mib"), [(100_000, 0, 960), (2000, 0, 500), (2000, 1500, 1500), (0, 0, 1)]
)
def test_logits_take_a_quarter_of_the_free_memory_at_most(
    free_mib: int, chunk_mib: int, expected_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_memory._quarter_of_free.cache_clear()
    # 300 MiB that torch's allocator holds and does not use are free as well.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: ((free_mib - 300) << 20, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 900 << 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 600 << 20)
    config = VocabParallelConfig(chunk_mib=chunk_mib)
    assert free_memory.logits_bytes(config, torch.device("cuda", 0), None) == expected_mib << 20
    # A CPU's results do not depend on its memory.
    assert free_memory.logits_bytes(config, torch.device("cpu"), None) == (chunk_mib or 160) << 20
    free_memory._quarter_of_free.cache_clear()
