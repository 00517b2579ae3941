"""The "reach" task: words round trip, demonstrations keep true account, and the demonstrator is half right."""

import random
import re
from collections import deque

import pytest

from megatron_fork.data import DataConfig, PromptSource, load_prompts, reach
from megatron_fork.rewards import MAX_OPERATIONS, OPERATIONS, score


@pytest.fixture(scope="module")
def source() -> PromptSource:
    return load_prompts(DataConfig(), None)


def test_words_are_tokens(source: PromptSource) -> None:
    vocabulary = reach.words()
    assert len(set(vocabulary)) == len(vocabulary) == len(source.tokenizer)
    for index, word in enumerate(vocabulary):
        assert source.tokenizer.convert_tokens_to_ids(word) == index
        if not word.startswith("<"):
            assert source.tokenizer(word)["input_ids"] == [index]


def test_prompts_round_trip(source: PromptSource) -> None:
    for prompt in [*source.training, *source.held_out]:
        assert source.tokenizer.decode(prompt.tokens) == prompt.text
        start, target = prompt.answer.split()
        assert prompt.text == f"from {start} to {target} :"


def test_every_prompt_can_be_solved_with_an_operation_to_spare(source: PromptSource) -> None:
    fewest, queue = {0: 0}, deque([0])
    while queue:
        here = queue.popleft()
        for operation in OPERATIONS:
            if here + operation not in fewest and abs(here + operation) < 100:
                fewest[here + operation] = fewest[here] + 1
                queue.append(here + operation)
    for prompt in [*source.training, *source.held_out]:
        start, target = map(int, prompt.answer.split())
        assert 1 <= fewest[target - start] < MAX_OPERATIONS


def test_held_out_prompts_are_others(source: PromptSource) -> None:
    training = {prompt.text for prompt in source.training}
    held_out = {prompt.text for prompt in source.held_out}
    assert len(held_out) == len(source.held_out) == 256
    assert len(training) == len(source.training) == len(reach.all_tasks()) - 256
    assert not training & held_out
    assert {prompt.text for prompt in load_prompts(DataConfig(), None).held_out} == held_out
    assert {prompt.text for prompt in load_prompts(DataConfig(seed=1), None).held_out} != held_out


def test_demonstrations_keep_true_account(source: PromptSource) -> None:
    demonstrations = source.demonstrations(2000, step=3, seed=1)
    assert [demonstration.number for demonstration in demonstrations] == list(range(2000))
    right = 0
    for demonstration in demonstrations:
        assert demonstration.response[-1] == source.tokenizer.eos_token_id
        text = source.tokenizer.decode(demonstration.response[:-1])
        value, target = map(int, demonstration.prompt.answer.split())
        *steps, last = text.split(" . ")
        assert len(steps) <= MAX_OPERATIONS
        for step in steps:
            missing, operation, following = map(
                int, re.fullmatch(r"need ([+-]\d+) take op([+-]\d+) get (\d+)", step).groups()
            )
            assert operation in OPERATIONS
            assert missing == target - value
            value += operation
            assert following == value
            assert 0 <= value <= reach.LARGEST
        assert last == f"need {target - value:+d} done"
        found = score(text, demonstration.prompt.answer, kind="reach").value
        assert found == float(value == target)
        right += found
    assert 0.35 < right / 2000 < 0.5


def test_demonstrations_repeat_for_a_step_and_differ_between_steps(source: PromptSource) -> None:
    assert source.demonstrations(20, step=3, seed=1) == source.demonstrations(20, step=3, seed=1)
    assert source.demonstrations(20, step=3, seed=1) != source.demonstrations(20, step=4, seed=1)
    assert source.demonstrations(20, step=3, seed=1) != source.demonstrations(20, step=3, seed=2)


def test_walks_end_from_every_start() -> None:
    generator = random.Random(0)
    for _ in range(300):
        text = reach.walk(generator.randrange(reach.LARGEST + 1), generator.randrange(reach.LARGEST + 1), generator)
        assert text.endswith(" done")
        assert set(text.split()) <= set(reach.words())
