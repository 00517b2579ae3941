"""Of a server's answer about given tokens, each token gets its own log-prob; an answer that cannot be right is a fault."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.rollout.servers import sglang, vllm
from megatron_fork.rollout.servers.wire import ServerFault

TOKENS = st.lists(st.integers(0, 134), min_size=2, max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def of_vllm(tokens: list[int], first: int, logprobs: list[float]) -> Any:
    """Its entries are of all tokens, the first without a value; a likelier token may be named too."""
    other = {"134": {"logprob": -0.1, "rank": 1, "decoded_token": None}}
    own = [{str(token): {"logprob": value, "rank": 2}} for token, value in zip(tokens, logprobs, strict=True)]
    return {"prompt_logprobs": [None, *({**other, **each} for each in own[1:])], "choices": [{"token_ids": [3]}]}


def of_sglang(tokens: list[int], first: int, logprobs: list[float]) -> Any:
    """Its entries begin one place before `first`; a token at the vocabulary's end is named 0."""
    entries = [[value, 0 if token == 134 else token, None] for token, value in zip(tokens, logprobs, strict=True)]
    about = {"input_token_logprobs": [[None, *entries[first - 1][1:]], *entries[first:]], "completion_tokens": 1}
    return {"output_ids": [3], "meta_info": about}


BOTH = pytest.mark.parametrize(
    ("answer_of", "read"), [(of_vllm, vllm.logprobs_in), (of_sglang, sglang.logprobs_in)], ids=["vllm", "sglang"]
)
Answer = Callable[[list[int], int, list[float]], Any]
Read = Callable[[object, list[int], int], list[float]]


@BOTH
@given(st.data())
def test_each_token_has_its_own(answer_of: Answer, read: Read, data: st.DataObject) -> None:
    tokens = data.draw(TOKENS)
    first = data.draw(st.integers(1, len(tokens)))
    logprobs = data.draw(st.lists(st.floats(-100, 0), min_size=len(tokens), max_size=len(tokens)))
    assert read(answer_of(tokens, first, logprobs), tokens, first) == logprobs[first:]


@BOTH
@given(st.data())
def test_whatever_it_sends_there_are_log_probs_or_a_fault(answer_of: Answer, read: Read, data: st.DataObject) -> None:
    tokens = data.draw(TOKENS)
    answer = copy.deepcopy(answer_of(tokens, 1, [-1.0] * len(tokens)))
    place, key = answer, None
    for _ in range(data.draw(st.integers(0, 6))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        if not keys:
            break
        parent, key = place, data.draw(st.sampled_from(keys))
        place = parent[key]
    nonsense = data.draw(JSON)
    if key is None:
        answer = nonsense
    else:
        parent[key] = nonsense
    try:
        found = read(answer, tokens, 1)
    except ServerFault as fault:
        assert fault.is_void
    else:
        assert len(found) == len(tokens) - 1 and all(math.isfinite(each) and each <= 1e-3 for each in found)


@BOTH
def test_log_probs_of_other_tokens_are_a_fault(answer_of: Answer, read: Read) -> None:
    answer = answer_of([5, 6, 7], 1, [-1.0] * 3)
    for tokens in ([5, 6, 8], [5, 6], [5, 6, 7, 8]):
        with pytest.raises(ServerFault):
            read(answer, tokens, 1)
