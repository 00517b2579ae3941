"""From a published file to prompts: columns, answers, templates, limits and counts; every refusal is one clear line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.prompt_files import TOKENIZER, bytes_tokenizer, everything, write

from megatron_fork.config import load_config
from megatron_fork.data import PRESETS, DataConfig, load_prompts, reach
from megatron_fork.data.columns import Columns
from megatron_fork.data.presets import DAPO_PREFIX, DAPO_SUFFIX
from megatron_fork.errors import ConfigError, DataError

# One row of each published schema; the texts are ours.
SCHEMAS: dict[str, tuple[dict[str, Any], str]] = {
    "dapo_math_17k": (
        {
            "data_source": "math_dapo",
            "prompt": [{"content": f"{DAPO_PREFIX}QUESTION{DAPO_SUFFIX}", "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b"},
        },
        "34",
    ),
    "math": (
        {
            "problem": "QUESTION",
            "level": "Level 5",
            "type": "Algebra",
            "solution": r"So \boxed{3}, no, \boxed{\frac{1}{2}}.",
        },
        r"\frac{1}{2}",
    ),
    "gsm8k": ({"question": "QUESTION", "answer": "He has 2*<<2*36=72>>36.\n#### 1,072"}, "1,072"),
    "aime_2024": (
        {"id": 60, "problem": "QUESTION", "solution": "...", "answer": "204", "url": "u", "year": "2024"},
        "204",
    ),
    "aime_2025": ({"problem": "QUESTION", "answer": "70", "id": "0"}, "70"),
    "amc_2023": ({"id": 0, "question": "QUESTION", "answer": 27.0, "url": "u"}, "27.0"),
    "math_500": (
        {"problem": "QUESTION", "solution": "s", "answer": "p - q", "subject": "a", "level": 2, "unique_id": "test/1"},
        "p - q",
    ),
    "minerva_math": ({"question": "QUESTION", "answer": "1.6"}, "1.6"),
    "olympiad_bench": ({"id": 1606, "question": "QUESTION", "final_answer": ["2", "$-3$"], "unit": None}, "2, $-3$"),
}
SCHEMAS["math_test"], SCHEMAS["gsm8k_test"] = SCHEMAS["math"], SCHEMAS["gsm8k"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_read_their_published_schema(tmp_path: Path, preset: str) -> None:
    row, answer = SCHEMAS[preset]
    text = json.dumps(row)
    rows = [json.loads(text.replace("QUESTION", f"What is {n}?")) for n in range(3)]
    for n, each in enumerate(rows):
        each.update({name: f"{n}" for name in ("id", "unique_id") if name in each})
    write(tmp_path / "train.jsonl", *rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{path: somewhere}}\ndata: {{preset: {preset}, source: {tmp_path / 'train.jsonl'}}}\n")
    config = load_config(recipe, ["data.rows=3", "data.held_out=1"]).data
    prompts = everything(load_prompts(config, TOKENIZER))
    assert [prompt.answer for prompt in prompts] == [answer] * 3
    for n, prompt in enumerate(prompts):
        assert prompt.text == (
            f"User:\nWhat is {n}?\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n\nAssistant:\n"
        )
        assert TOKENIZER.decode(prompt.tokens) == prompt.text
    with pytest.raises(DataError, match=rf"has 3 rows, not data\.rows={PRESETS[preset]['data']['rows']}"):
        load_prompts(load_config(recipe, ["data.held_out=1"]).data, TOKENIZER)


def test_duplicates_are_counted_and_dropped(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 3}", "answer": str(n % 2)} for n in range(60)]
    path = write(tmp_path / "a.jsonl", *rows)
    source = load_prompts(DataConfig(source=path, duplicates="drop", held_out=1), TOKENIZER)
    counts = source.counts
    assert (counts.rows, counts.kept, counts.duplicates, counts.of_held_out) == (60, 6, 54, 1)
    assert len(everything(source)) == 5  # each question has two answers, and one question is held out
    assert "54 duplicates dropped, 1 left out as repeats of a held-out question" in str(counts)
    with pytest.raises(DataError, match=r"a\.jsonl line 7 repeats"):
        load_prompts(DataConfig(source=path, duplicates="refuse", held_out=1), TOKENIZER)


def test_over_long_prompts_are_dropped_and_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"prompt": "x" * n, "answer": "1"} for n in range(1, 11)))
    source = load_prompts(DataConfig(source=path, over_long="drop", max_prompt_tokens=6, held_out=1), TOKENIZER)
    assert (source.counts.kept, source.counts.over_long, source.longest_prompt) == (6, 4, 6)
    assert [prompt.text for prompt in everything(source)] == ["x" * n for n in range(1, 7)]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("none", "1+1?"),
        ("qwen3", "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3_no_thinking", "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("{{ level }}: {{ question | upper }}\n", "5: 1+1?\n"),
        ("chat", "[1+1?] thinking"),
        ("chat_no_thinking", "[1+1?]"),
    ],
)
def test_templates(tmp_path: Path, template: str, text: str) -> None:
    tokenizer = bytes_tokenizer(
        "<|im_start|>",
        "<|im_end|>",
        chat_template="[{{ messages[0].content }}]{% if enable_thinking %} thinking{% endif %}",
    )
    rows = ({"prompt": "1+1?", "answer": "2", "level": 5}, {"prompt": "1+2?", "answer": "3", "level": 5})
    path = write(tmp_path / "a.jsonl", *rows)
    prompt = everything(load_prompts(DataConfig(source=path, template=template, held_out=1), tokenizer))[0]
    assert prompt.text == text
    assert tokenizer.decode(prompt.tokens) == text


def test_a_template_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("Q: {{ question }}\n")
    path = write(tmp_path / "a.jsonl", {"prompt": "1+1?", "answer": "2"}, {"prompt": "1+2?", "answer": "3"})
    config = DataConfig(source=path, template=str(tmp_path / "mine.jinja"), held_out=1)
    assert everything(load_prompts(config, TOKENIZER))[0].text == "Q: 1+1?\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{{ question"}, r"data\.template is not valid Jinja, line 1"),
        ({"template": "{{ grade }}"}, r"a\.jsonl line 1 does not fit data\.template"),
        ({"template": "{{ question.__class__.__mro__ }}"}, r"line 1 does not fit data\.template"),
        ({"template": "chat"}, r"the tokenizer has no chat template"),
        ({"template": "{{ question }} {{ choices }}"}, r"line 1 does not fit data\.template.*\['A', 'B'\] is not text"),
        ({"template": "{{ question }} {{ level }}"}, r"line 1 does not fit data\.template.*None is not text"),
        (
            {"columns": Columns(prompt="question")},
            r"a\.jsonl line 1 has no column question; it has prompt, answer, id, choices, level",
        ),
        ({"columns": Columns(answer="answer.0")}, r"a\.jsonl line 1 has no column answer\.0; it has a str"),
        ({"columns": Columns(id="id")}, r"a\.jsonl line 2 has the id '7' of .*a\.jsonl line 1"),
        ({"answer_form": "boxed"}, r"a\.jsonl line 1 has the answer '2', which is not data\.answer_form=boxed"),
        ({"answer_form": "hashes"}, r"which is not data\.answer_form=hashes"),
        ({"prompt_prefix": "Solve: "}, r"a\.jsonl line 1 has a prompt without data\.prompt_prefix"),
        ({"sha256": "0" * 64}, r"has the SHA-256 [0-9a-f]{64}, not data\.sha256=0000"),
        ({"rows": 3}, r"has 2 rows, not data\.rows=3"),
        ({"max_prompt_tokens": 3}, r"a\.jsonl line 1 has 4 tokens, more than data\.max_prompt_tokens=3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    row = {"prompt": "1+1?", "answer": "2", "id": "7", "choices": ["A", "B"], "level": None}
    path = write(tmp_path / "a.jsonl", row, row)
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(DataConfig(source=path, held_out=1, **settings), TOKENIZER)
    assert caught.value.hint


def test_a_checksum_that_is_right(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "1+1?", "answer": "2"}, {"prompt": "1+2?", "answer": "3"})
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert load_prompts(DataConfig(source=path, held_out=1, sha256=digest), TOKENIZER).counts.kept == 2


def test_qwen3_needs_its_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "1+1?", "answer": "2"})
    with pytest.raises(DataError, match=r"data\.template=qwen3 needs the tokens <\|im_start\|> <\|im_end\|>"):
        load_prompts(DataConfig(source=path, template="qwen3", held_out=1), bytes_tokenizer())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"preset": "dapo"}, "data.preset"),
        ({"preset": "gsm8k"}, "data.source"),
        ({"sha256": "abc"}, "data.sha256"),
        ({"max_prompt_tokens": 0}, "data.max_prompt_tokens"),
        ({"source": "reasoning_gym"}, "data.generator.task"),
    ],
)
def test_config_names_the_field(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")) as caught:
        DataConfig(**settings)
    assert caught.value.hint


def test_the_order_of_a_file_is_drawn_and_resumed_by_its_number_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"prompt": f"p{n}", "answer": str(n)} for n in range(50)))
    first = load_prompts(DataConfig(source=path, held_out=10), TOKENIZER)
    again = load_prompts(DataConfig(source=path, held_out=10), TOKENIZER)
    whole = first.draw(100, start=0, seed=3)
    assert again.draw(60, start=40, seed=3) == whole[40:]
    assert sorted(prompt.index for prompt in whole[:40]) == sorted(prompt.index for prompt in first.training)
    assert {prompt.text for prompt in whole[:40]} == {prompt.text for prompt in whole[40:80]}
    assert whole[:40] != whole[40:80]


def test_text_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{"prompt": "unknown words", "answer": "2"}] * 2)
    with pytest.raises(DataError, match=r"the tokenizer cannot read a prompt between .*line 1 and .*line 2"):
        load_prompts(DataConfig(source=path, held_out=1), reach.build_tokenizer())


def test_a_template_of_no_known_name_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "1+1?", "answer": "2"})
    with pytest.raises(ConfigError, match=r"data\.template=papper is not a template"):
        load_prompts(DataConfig(source=path, template="papper"), TOKENIZER)
