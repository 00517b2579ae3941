"""A response from several servers is the sum of their shares, each under the weights that wrote it; false ones do not count."""

import pickle
import queue

import torch

from megatron_fork.experience import VersionSpan
from megatron_fork.rollout import PartialResponse, Request
from megatron_fork.rollout.pending import DrawnSegment, PendingRequest, StreamChunk
from megatron_fork.rollout.weights import buckets

LABELS = {"run:3": 3, "run:4": 4}


def segment(version: int, *chunks: StreamChunk) -> DrawnSegment:
    made = DrawnSegment(version, LABELS)
    for chunk in chunks:
        made.add(chunk)
    return made


def test_shares_add_up() -> None:
    pending = PendingRequest.of(
        Request(7, (5, 6), 0, 1.0, 10, begun=PartialResponse((8,), (-0.5,), (VersionSpan(2, 0, 1),))), queue.Queue()
    )
    assert pending.prompt == [5, 6, 8] and pending.remaining == 9
    pending.add(segment(3, StreamChunk([9, 10], [-1.0, -2.0])))  # broke off
    pending.add(segment(3, StreamChunk([11], [-3.0], None, [("run:3", 0, 1)])))
    pending.add(segment(3, StreamChunk([12, 13], [-4.0, -5.0], "stop", [("run:3", 0, 1), ("run:4", 1, 2)])))
    completion = pending.completion("stop")
    assert list(completion.tokens) == [8, 9, 10, 11, 12, 13]
    assert list(completion.logprob) == [-0.5, -1.0, -2.0, -3.0, -4.0, -5.0]
    assert completion.versions == (VersionSpan(2, 0, 1), VersionSpan(3, 1, 5), VersionSpan(4, 5, 6))
    assert completion.weight_version == 2
    assert pending.unfinished().begun == PartialResponse(completion.tokens, completion.logprob, completion.versions)


def test_a_response_takes_eight_bytes_a_token() -> None:
    """In memory, and on its way to other ranks: a step's responses are on each."""
    pending = PendingRequest.of(Request(7, (5, 6), 0, 1.0, 20_000), queue.Queue())
    pending.add(segment(3, StreamChunk([150_000] * 10_000, [-1.1] * 10_000)))
    for held in (pending.completion("length"), pending.unfinished()):
        assert 80_000 <= len(pickle.dumps(held)) < 81_000


def test_a_share_of_foreign_weights_or_wrong_places_is_not_sound() -> None:
    two = ([1, 2], [-1.0, -1.0])
    assert segment(3, StreamChunk(*two)).is_sound
    assert segment(3, StreamChunk(*two, "stop", [("run:3", 0, 2)])).is_sound
    for labels in ([("other:3", 0, 2)], [("run:3", 0, 1)], [("run:3", 1, 2)], [("run:3", 0, 3)], []):
        assert not segment(3, StreamChunk(*two, "stop", labels)).is_sound
    assert segment(3, StreamChunk(*two, "stop", [("run:3", 0, 1), ("run:4", 1, 2)])).is_sound
    assert not segment(
        3, StreamChunk(*two, "stop", [("run:4", 0, 1), ("run:3", 1, 2)])
    ).is_sound  # newer ones are not undone
    assert not segment(4, StreamChunk(*two, "stop", [("run:3", 0, 2)])).is_sound  # it had been given others by then
    assert segment(3, StreamChunk(*two, "stop", [("other:3", 0, 2)])).is_foreign
    assert not segment(4, StreamChunk(*two, "stop", [("run:3", 0, 2), ("other:3", 2, 2)])).is_foreign


def test_a_response_has_ended_where_its_tokens_say_so() -> None:
    pending = PendingRequest.of(Request(7, (5, 6), 0, 1.0, 3), queue.Queue())
    found = [pending.finish((1,))]
    for token in (2, 1, 2):
        pending.add(segment(3, StreamChunk([token], [-1.0])))
        found.append(pending.finish((1,)))
    assert found == [None, None, "stop", "length"]


def test_buckets_are_bounded_copies() -> None:
    weights = [(str(number), torch.full((size,), float(number))) for number, size in enumerate((2, 3, 9, 1, 1))]
    made = list(buckets(iter(weights), 20, torch.device("cpu")))
    assert [[name for name, _ in bucket] for bucket in made] == [["0", "1"], ["2"], ["3", "4"]]
    for bucket in made:
        for name, tensor in bucket:
            original = weights[int(name)][1]
            assert torch.equal(tensor, original) and tensor.data_ptr() != original.data_ptr()
