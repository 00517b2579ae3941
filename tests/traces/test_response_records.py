"""Responses that are not trained on keep their words and the verifier's; bytes that are no text stay bytes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from megatron_fork.data import PromptSource
from megatron_fork.data.source import PromptCounts
from megatron_fork.experience import Prompt, Trajectory, logprob_array, token_array
from megatron_fork.run.folder import RunFolder
from megatron_fork.run.traces import RowsOf, untrained_responses
from megatron_fork.traces import Origin, TokenTexts, open_traces


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece falls back to bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def tokens_of(tokenizer: PreTrainedTokenizerFast, raw: bytes) -> list[int]:
    if tokenizer is TOKENIZERS["byte fallback"]:
        return list(raw)
    letters = bytes_to_unicode()
    return [tokenizer.convert_tokens_to_ids(letters[byte]) for byte in raw]


def trajectory(tokens: list[int], number: int = 0, reward: float = 0.0) -> Trajectory:
    return Trajectory(
        number,
        Prompt(0, "p", (tokens[0],), "a"),
        token_array(tokens[1:]),
        logprob_array([-0.5] * len(tokens[1:])),
        "stop",
        0,
        reward=reward,
        reason="why",
    )


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_the_bytes_of_any_response_are_there(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    raw = text.encode()
    tokens = tokens_of(tokenizer, b"x" + raw)
    texts = TokenTexts(tokenizer).of(tokens[1:], after=tokens[0])
    assert len(texts) == len(raw)
    assert "".join(texts).encode(errors="surrogateescape") == raw


SOME = st.tuples(st.lists(st.integers(0, 255), max_size=5), st.none() | st.integers(0, 255))


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(responses=st.lists(SOME, max_size=5))
@settings(deadline=None, max_examples=50)
def test_responses_together_have_the_texts_of_each_alone(
    kind: str, responses: list[tuple[list[int], int | None]]
) -> None:
    """Also empty ones, those behind nothing, and the same one twice."""
    together = TokenTexts(TOKENIZERS[kind]).of_all(responses)
    assert together == [TokenTexts(TOKENIZERS[kind]).of(tokens, after=after) for tokens, after in responses]


def test_right_and_wrong_responses_are_read_again(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte level"]
    tokens = tokens_of(tokenizer, "xé!".encode())
    responses = [trajectory(tokens, number, reward=float(number == 7)) for number in range(20)]
    folder = RunFolder(tmp_path, writes=True)
    source = PromptSource((), (), tokenizer, 0, PromptCounts(), question_keys=[7])
    for kind, of in (("evaluation", "evaluation"), ("without_signal", "step")):
        rows = RowsOf(source, kind, set="held_out", step=3, samples=20)
        folder.traces(3, untrained_responses(responses, rows, count=4), Origin(), of=of)
    for kind, of in (("evaluation", "evaluation"), ("without_signal", "step")):
        (read,) = open_traces(tmp_path / "traces" / f"{of}-000003.parquet").parts()
        assert set(read.values("kind")) == {kind}
        assert read.values("reward").count(1.0) == 1 and len(read) == 4
        assert set(read.values("reason")) == {"why"}
        assert b"".join(read.values("token_texts")[0]) == "é!".encode()


def test_resuming_forgets_evaluations_that_come_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True)
    source = PromptSource((), (), TOKENIZERS["byte level"], 0, PromptCounts(), question_keys=[7])
    for step in (0, 2, 4):
        for of in ("evaluation", "step"):
            rows = RowsOf(source, "evaluation", set="held_out", step=step, samples=1)
            folder.traces(step, untrained_responses([trajectory([1, 2])], rows, count=None), Origin(), of=of)
            (tmp_path / "traces" / f"{of}-{step:06d}.jsonl").write_text("{}")  # as earlier versions wrote them
    (tmp_path / "traces" / ".step-000002.parquet.123").write_text("half")
    folder.forget(after=2, evaluations_after=0)
    kept = {path.name for path in (tmp_path / "traces").iterdir()}
    stems = ("evaluation-000000", "step-000000", "step-000002")
    assert kept == {f"{stem}.{ending}" for stem in stems for ending in ("parquet", "jsonl")}


def test_no_file_where_there_is_no_response(tmp_path: Path) -> None:
    RunFolder(tmp_path, writes=True).traces(1, [], Origin())
    assert not (tmp_path / "traces").exists()
