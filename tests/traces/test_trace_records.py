"""A trace shows the text as the model wrote it, and the columns of the very tokens it shows."""

import random

import torch

from megatron_fork.data import DataConfig, load_prompts
from megatron_fork.experience import Batch, Trajectory
from megatron_fork.run.traces import token_texts, trace_records


def batch() -> tuple[Batch, object]:
    source = load_prompts(DataConfig(), None)
    demonstrations = source.demonstrations(12, step=0, seed=1)
    trajectories = [
        Trajectory(each.number, each.prompt, each.response, tuple(0.0 for _ in each.response), "stop", 0)
        for each in demonstrations
    ]
    made = Batch.of_trajectories(trajectories)
    values = torch.arange(made.response_tokens, dtype=torch.float32)
    return made.with_columns(entropy_t=values, old_logprob_t=-values, selected_t=values % 3 == 0), source.tokenizer


def test_texts_join_to_the_response() -> None:
    made, tokenizer = batch()
    for sequence in made.sequences:
        assert "".join(token_texts(tokenizer, sequence)).strip() == tokenizer.decode(list(sequence.response))


def test_columns_belong_to_the_tokens_in_any_order_of_sequences() -> None:
    made, tokenizer = batch()
    order = list(range(12))
    random.Random(2).shuffle(order)
    records = trace_records([made], tokenizer, step=4, count=5, group=None)
    assert records == trace_records(
        [made.take(order[:7]), made.take(order[7:])], tokenizer, step=4, count=5, group=None
    )
    assert len(records) == 5
    starts = [0]
    for length in made.response_lengths:
        starts.append(starts[-1] + length)
    for record in records:
        first, last = starts[record["number"]], starts[record["number"] + 1]
        assert record["entropy"] == [float(value) for value in range(first, last)]
        assert record["logprob"] == [-float(value) for value in range(first, last)]
        assert record["selected"] == [value % 3 == 0 for value in range(first, last)]
        assert len(record["tokens"]) == last - first


def test_fewer_than_asked_for() -> None:
    made, tokenizer = batch()
    assert len(trace_records([made], tokenizer, step=1, count=99, group=None)) == 12
