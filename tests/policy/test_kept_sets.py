"""The sets that an engine reported come in the order of a batch's tokens, whole or not at all."""

from dataclasses import replace

import pytest
import torch
from support.batches import batch_of
from support.layouts import trajectories

from megatron_fork.errors import RolloutError
from megatron_fork.experience import Batch, KeptTokens
from megatron_fork.policy.truncation import kept_sets_of

DRAWN = trajectories(kept=True)


def test_sets_follow_the_tokens_of_any_part_of_a_batch() -> None:
    share = Batch.of_trajectories(DRAWN).take([5, 0, 11])
    sets = kept_sets_of(share)
    assert sets is not None
    starts = [0, *torch.tensor(share.response_lengths).cumsum(0).tolist()]
    for place, number in enumerate((5, 0, 11)):
        mine = sets.take(torch.arange(starts[place], starts[place + 1]))
        assert mine.id_n.tolist() == list(DRAWN[number].kept.ids)
        assert mine.count_t.tolist() == list(DRAWN[number].kept.counts)


def test_demonstrations_and_engines_that_report_nothing_have_none() -> None:
    assert kept_sets_of(batch_of([(3, 2), (1, 4)])) is None
    assert kept_sets_of(Batch.of_trajectories(trajectories())) is None
    assert kept_sets_of(Batch.of_trajectories([])) is None


@pytest.mark.parametrize("kept", [None, KeptTokens()])
def test_a_response_without_its_sets_among_others_is_refused(kept: KeptTokens | None) -> None:
    mixed = [replace(each, kept=kept) if each.number == 7 else each for each in DRAWN]
    with pytest.raises(RolloutError, match="what 0 tokens of response 7 were drawn from, which has") as raised:
        kept_sets_of(Batch.of_trajectories(mixed))
    assert "replay_sampling_mask=false" in raised.value.hint


def test_sets_can_be_cut_and_joined() -> None:
    sets = KeptTokens()
    for ids in ([4, 5], [], [9], [1, 2, 3]):
        sets.append(ids)
    whole = sets.copy()
    sets.cut(3)
    assert (list(sets.ids), list(sets.counts)) == ([4, 5, 9], [2, 0, 1])
    sets.cut(3)
    tail = KeptTokens()
    tail.append([1, 2, 3])
    sets.extend(tail)
    assert sets == whole and len(sets) == 4
    sets.cut(0)
    assert sets == KeptTokens()
