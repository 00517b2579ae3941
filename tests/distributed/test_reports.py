"""What forks of this process report arrives whole and in order, however large, and nothing is left behind."""

import multiprocessing
import os
import queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.distributed.compatibility import ReportsOfForks


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.sampled_from([0, 1, 5000, 3_000_000]), min_size=1, max_size=4), between=st.booleans())
def test_reports_of_forks(sizes: list[int], between: bool) -> None:
    reports = ReportsOfForks()
    with pytest.raises(queue.Empty):
        reports.get_nowait()
    received = []
    for number, size in enumerate(sizes):
        fork = multiprocessing.get_context("fork").Process(target=reports.put, args=((number, b"x" * size),))
        fork.start()
        fork.join()
        if between:
            received.append(reports.get_nowait())
    while len(received) < len(sizes):
        received.append(reports.get_nowait())
    assert received == [(number, b"x" * size) for number, size in enumerate(sizes)]
    with pytest.raises(queue.Empty):
        reports.get_nowait()
    assert os.fstat(reports._memory).st_size == 0
