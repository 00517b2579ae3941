"""Responses are cut after their last trained token, and every token that is left knows its place in the whole share."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.experience import (
    Batch,
    KeptTokens,
    Prompt,
    Trajectory,
    VersionSpan,
    logprob_array,
    token_array,
)
from megatron_fork.policy.prefixes import prefixes


def trajectory(number: int, prompt: int, response: int) -> Trajectory:
    length = prompt + response - 1
    kept = KeptTokens()
    for place in range(response):  # none keeps the whole vocabulary
        kept.append(range(place % 3))
    return Trajectory(
        number,
        Prompt(number, "", tuple(range(1, prompt + 1)), ""),
        token_array(range(50, 50 + response)),
        rollout_logprob=logprob_array(-float(place) for place in range(response)),
        finish_reason="stop",
        weight_version=0,
        experts=torch.arange(length).view(length, 1, 1),
        kept=kept,
        versions=(VersionSpan(4, 0, (response + 1) // 2), VersionSpan(5, (response + 1) // 2, response)),
    )


@given(
    responses=st.lists(st.tuples(st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=8)), max_size=6),
)
def test_what_is_left(responses: list[tuple[int, list[bool]]]) -> None:
    whole = Batch.of_trajectories([trajectory(n, prompt, len(marks)) for n, (prompt, marks) in enumerate(responses)])
    trained_t = torch.tensor([mark for _, marks in responses for mark in marks], dtype=torch.bool)
    shorter, place_t = prefixes(whole, trained_t)
    assert torch.equal(place_t, place_t.unique()) and len(place_t) == shorter.response_tokens
    assert int(trained_t[place_t].sum()) == int(trained_t.sum())  # none is lost
    assert [each.number for each in shorter.sequences] == [n for n, (_, marks) in enumerate(responses) if any(marks)]
    for each in shorter.sequences:
        full, marks = whole.sequences[each.number], responses[each.number][1]
        assert len(each.response) == max(place for place, mark in enumerate(marks) if mark) + 1
        assert list(each.response) == list(full.response[: len(each.response)])
        assert isinstance(each, Trajectory) and each.experts is not None
        assert len(each.rollout_logprob) == len(each.response) and len(each.experts) == each.length
        assert each.kept is not None and list(each.kept.counts) == [place % 3 for place in range(len(each.response))]
        assert len(each.kept.ids) == sum(each.kept.counts)
        spans = [token for span in each.versions for token in [span.version] * (span.end - span.start)]
        assert len(spans) == len(each.response) and spans == sorted(spans)
    for each in whole.sequences:  # these are as they were
        assert isinstance(each, Trajectory) and each.kept is not None and len(each.kept) == len(each.response)
    assert torch.equal(shorter.number_t, whole.number_t[place_t]) and torch.equal(
        shorter.place_t, whole.place_t[place_t]
    )
