"""The tokens that end a response are all that any place names, each once, and every engine is asked for all of them."""

import queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.errors import ModelError
from megatron_fork.rollout import RemoteConfig, Request, stop_tokens_of
from megatron_fork.rollout.pending import PendingRequest, vllm_sampling
from megatron_fork.rollout.servers.sglang import SglangServer

IDS = st.integers(0, 99)
VALUES = st.one_of(st.none(), IDS, st.lists(IDS, max_size=4))


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_all_that_are_named(named: dict[str, object]) -> None:
    ids = [token for value in named.values() for token in (value if isinstance(value, list) else [value])]
    wanted = [token for token in ids if token is not None]
    if not wanted:
        with pytest.raises(ModelError, match="no token ends a response"):
            stop_tokens_of(named, 100)
        return
    assert stop_tokens_of(named, 100) == tuple(dict.fromkeys(wanted))


@pytest.mark.parametrize("value", [-1, 100, 1.0, True, "1", "<eos>", {}, {"a": 1}, [3, 100], [None], [[1]]])
def test_what_is_no_token_is_named(value: object) -> None:
    with pytest.raises(ModelError, match="eos_token_id of here is ") as caught:
        stop_tokens_of({"there": 3, "eos_token_id of here": value}, 100)
    assert repr(value) in caught.value.message and "vocabulary of 100" in caught.value.message and caught.value.hint


def test_servers_are_asked_for_all_of_them() -> None:
    draft = PendingRequest.of(Request(0, (5, 6), 3, 1.0, 20), queue.Queue())
    assert vllm_sampling(draft, (7, 9), stream_interval=4)["stop_token_ids"] == [7, 9]
    server = SglangServer("http://127.0.0.1:1", RemoteConfig(), 100)
    assert server._body(draft, (7, 9))["sampling_params"]["stop_token_ids"] == [7, 9]
