"""A trace shows the text as the model wrote it, and the columns of the very tokens it shows."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks
from support.trace_files import as_row

from megatron_fork.data import DataConfig, PromptSource, load_prompts
from megatron_fork.experience import Batch, Trajectory, VersionSpan
from megatron_fork.run import traces
from megatron_fork.run.traces import RowsOf, trained_responses
from megatron_fork.traces import TokenTexts, TracedResponse


def batch() -> tuple[Batch, PromptSource]:
    source = load_prompts(DataConfig(), None)
    demonstrations = source.demonstrations(12, step=0, seed=1)
    trajectories = [
        Trajectory(
            *(each.number, each.prompt, each.response, tuple(0.0 for _ in each.response), "stop", 3),
            versions=(VersionSpan(3, 0, 1), VersionSpan(4, 1, len(each.response))),
        )
        for each in demonstrations
    ]
    made = Batch.of_trajectories(trajectories)
    values = torch.arange(made.response_tokens, dtype=torch.float32)
    return made.with_columns(entropy_t=values, old_logprob_t=-values, selected_t=values % 3 == 0), source


def rows_of(source: PromptSource) -> RowsOf:
    return RowsOf(source, "trained", set="training", step=4, samples=4)


def traced(made: Batch, shares: list[Batch], source: PromptSource, count: int | None = None) -> list[TracedResponse]:
    return list(trained_responses(made.sequences, shares, rows_of(source), count=count, seed=4, group=None))


def test_texts_join_to_the_response() -> None:
    made, source = batch()
    texts = TokenTexts(source.tokenizer)
    for sequence in made.sequences:
        shown = "".join(texts.of(sequence.response, after=sequence.prompt.tokens[-1]))
        assert shown.strip() == source.tokenizer.decode(list(sequence.response))


def test_columns_belong_to_the_tokens_in_any_order_of_sequences() -> None:
    made, source = batch()
    order = list(range(12))
    random.Random(2).shuffle(order)
    rows = traced(made, [made], source, count=5)
    shuffled = traced(made, [made.take(order[:7]), made.take(order[7:])], source, count=5)
    assert list(map(as_row, rows)) == list(map(as_row, shuffled))
    assert len(rows) == 5
    starts = [0]
    for length in made.response_lengths:
        starts.append(starts[-1] + length)
    for row in rows:
        assert row.number is not None and row.entropy is not None and row.logprob is not None
        first, last = starts[row.number], starts[row.number + 1]
        assert list(row.entropy) == [float(value) for value in range(first, last)]
        assert list(row.logprob) == [-float(value) for value in range(first, last)]
        assert np.asarray(row.selected).tolist() == [value % 3 == 0 for value in range(first, last)]
        assert len(row.tokens) == last - first and row.sample == row.number % 4
        assert np.asarray(row.weight_version).tolist() == [3] + [4] * (last - first - 1)


def test_fewer_than_asked_for() -> None:
    made, source = batch()
    assert len(traced(made, [made], source, count=99)) == 12


@pytest.mark.parametrize("tokens", [1, 17, 1 << 20])
def test_all_are_gathered_in_pieces_of_any_size(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, source = batch()
    monkeypatch.setattr(traces, "_TOKENS_PER_PIECE", tokens)
    rows = traced(made, [made], source)
    assert [row.number for row in rows] == list(range(12))
    assert np.concatenate([row.entropy for row in rows]).tolist() == list(range(made.response_tokens))


def _on_rank() -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    traces._TOKENS_PER_PIECE = 40
    made, source = batch()
    share = made.take(range(rank, 12, ranks))
    rows = list(trained_responses(made.sequences, [share], rows_of(source), count=None, seed=4, group=dist.group.WORLD))
    if rank == 0:
        assert list(map(as_row, rows)) == list(map(as_row, traced(made, [made], source)))
    else:
        assert not rows


def test_the_first_of_several_ranks_gets_all() -> None:
    run_on_ranks(_on_rank, 2)


def test_numbers_that_are_none_leave_their_column_out() -> None:
    """After a broken update; a reader takes such numbers for damage."""
    made, source = batch()
    broken = made.entropy_t.clone()
    broken[0] = float("nan")
    first, second, *_ = traced(made, [made.with_columns(entropy_t=broken)], source)
    assert first.entropy is None and first.logprob is not None and second.entropy is not None


def test_the_same_question_has_the_same_name() -> None:
    _, source = batch()
    other = load_prompts(replace(DataConfig(), held_out=3, seed=9), None)
    names = {source.prompt_id(prompt): prompt.text for prompt in source.training}
    assert len(names) == len({prompt.text for prompt in source.training})
    for prompt in other.held_out:
        assert names.get(other.prompt_id(prompt), prompt.text) == prompt.text
