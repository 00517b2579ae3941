"""Columns of a batch follow its sequences through any re-ordering, and token ids name tokens whatever the layout."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.experience import Batch, Prompt, Trajectory


def batch_of(lengths: list[int]) -> Batch:
    """The log-prob of token `place` of trajectory `number` is -(100 number + place), its advantage the number."""
    trajectories = [
        Trajectory(
            number=number,
            prompt=Prompt(number, "", (1,), ""),
            response=tuple(range(length)),
            rollout_logprob=tuple(-(100.0 * number + place) for place in range(length)),
            finish_reason="stop",
            weight_version=0,
            advantage=float(number),
        )
        for number, length in enumerate(lengths)
    ]
    return Batch.of_trajectories(trajectories)


@given(lengths=st.lists(st.integers(1, 9), max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_columns_follow_their_sequences(lengths: list[int], data: st.DataObject) -> None:
    batch = batch_of(lengths)
    order = data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(0, len(lengths)))]
    taken = batch.with_columns(entropy_t=torch.arange(float(batch.response_tokens))).take(order)
    assert [sequence.number for sequence in taken.sequences] == list(order)
    assert taken.response_lengths == [lengths[index] for index in order]
    assert taken.advantage_t.tolist() == [float(index) for index in order for _ in range(lengths[index])]
    tokens = [(index, place) for index in order for place in range(lengths[index])]
    assert taken.rollout_logprob_t.tolist() == [-(100.0 * index + place) for index, place in tokens]
    assert taken.sequence_t.tolist() == [row for row, index in enumerate(order) for _ in range(lengths[index])]
    assert taken.old_logprob_t is None
    ids = dict(zip(batch.rollout_logprob_t.tolist(), batch.token_id_t.tolist(), strict=True))
    assert len(set(ids.values())) == batch.response_tokens
    assert taken.token_id_t.tolist() == [ids[value] for value in taken.rollout_logprob_t.tolist()]
    assert taken.entropy_t.tolist() == [sum(lengths[:index]) + place for index, place in tokens]
