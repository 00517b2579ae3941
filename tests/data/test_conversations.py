"""A prompt may be a conversation; it is written whole or refused, and its special tokens stand in it once."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_fork.data import Columns, DataConfig, load_prompts
from megatron_fork.data.templates import find_template
from megatron_fork.errors import DataError

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "user",
    "system",
    "assistant",
    "be",
    "brief",
    "one",
    "two",
    ":",
]


def tokenizer(*, begins: bool = True, chat: str | None = None) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    extra = {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    made = PreTrainedTokenizerFast(tokenizer_object=words, **marks, **extra)
    made.chat_template = chat
    return made


TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "two"},
]
CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"


def rows_file(tmp_path: Path, prompts: list[Any], name: str = "rows.jsonl", **more: Any) -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "1", **more}) + "\n" for prompt in prompts))
    return path


def loaded(path: Path, template: str, tokens: PreTrainedTokenizerFast, **fields: Any) -> Any:
    return load_prompts(DataConfig(source=str(path), template=template, held_out=1, **fields), tokens)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("chat", "system : be brief user : one assistant : two user : two "),
        ("{{ messages[0].content }} {{ question }}", "be brief one\n\ntwo"),
        (
            "qwen3",
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
            "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_a_conversation_is_written_whole(template: str, text: str, tmp_path: Path) -> None:
    other = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one one"}]
    source = loaded(rows_file(tmp_path, [TALK, other]), template, tokenizer(chat=CHAT))
    assert text in {prompt.text for prompt in (*source.training, *source.held_out)}


def test_one_message_of_the_user_is_its_text(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [[{"role": "user", "content": "one"}], "two"])
    source = loaded(path, "none", tokenizer())
    assert {prompt.text for prompt in (*source.training, *source.held_out)} == {"one", "two"}


def test_prefixes_are_of_what_the_user_says_last(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [[TALK[0], {"role": "user", "content": f"Q: {word}."}] for word in ("one", "two")])
    source = loaded(path, "chat", tokenizer(chat=CHAT), prompt_prefix="Q: ", prompt_suffix=".")
    texts = {prompt.text for prompt in (*source.training, *source.held_out)}
    assert texts == {f"system : be brief user : {word} " for word in ("one", "two")}


def test_system_prompts_tell_rows_apart_but_not_questions(tmp_path: Path) -> None:
    """Else a held-out question would be trained on under another system prompt."""
    talks = [[{"role": "system", "content": system}, {"role": "user", "content": "one"}] for system in ("be", "brief")]
    path = rows_file(tmp_path, [*talks, *talks, [{"role": "user", "content": "two"}]])
    source = loaded(path, "chat", tokenizer(chat=CHAT), duplicates="drop")
    assert source.counts.duplicates == 2
    held_out = {prompt.text for prompt in source.held_out}
    assert len({"one" in text for text in held_out}) == 1
    assert all(("one" in prompt.text) not in {"one" in text for text in held_out} for prompt in source.training)


@pytest.mark.parametrize(
    ("prompt", "template", "named"),
    [
        (TALK, "none", "a prompt of 4 messages"),
        (TALK, "paper", "a prompt of 4 messages"),
        (TALK, "{{ question }} {{ answer }}", "a prompt of 4 messages"),
        (TALK[:3], "chat", "ends with {'role': 'assistant'"),
        ([{"role": "user"}], "chat", "has the prompt"),
        ([{"role": "user", "content": 1}], "chat", "has the prompt"),
        ([], "chat", "has the prompt"),
        ([{"role": "user", "content": " "}], "chat", "ends with"),
        (7, "chat", "has the prompt 7"),
    ],
)
def test_what_cannot_be_written_is_refused(prompt: Any, template: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        loaded(rows_file(tmp_path, [prompt, TALK]), template, tokenizer(chat=CHAT))
    assert named in caught.value.message and "rows.jsonl line 1" in caught.value.message and caught.value.hint


BROKEN = [
    "{% for %}",
    "{{ raise_exception('no system') }}",
    "{{ messages[3].content }}",
    "{{ 1 / 0 }}",
    "{{ messages.nothing() }}",
    "{% include 'x' %}",
    "{{ 'a' + 1 }}",
    "{{ [].pop() }}",
]


@pytest.mark.parametrize("chat", BROKEN)
def test_a_chat_template_that_raises_is_one_line(chat: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chat template") as caught:
        loaded(rows_file(tmp_path, ["one", "two"]), "chat", tokenizer(chat=chat))
    assert "\n" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize("template", [*BROKEN, "{{ absent }}", "{{ question.x.y }}", "{{ pad_token.absent }}"])
def test_a_template_of_ones_own_that_raises_is_one_line(template: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.template") as caught:
        loaded(rows_file(tmp_path, ["one", "two"]), template, tokenizer())
    assert "\n" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize(
    ("template", "once"),
    [
        ("{{ bos_token }} {{ question }}", True),
        ("<s> {{ question }}", True),
        ("{{ question }}", None),
        ("{{ question }} <s> {{ bos_token }}", None),
    ],
)
def test_what_begins_a_prompt_stands_there_once(begins: bool, template: str, once: bool | None, tmp_path: Path) -> None:
    source = loaded(rows_file(tmp_path, ["one", "two"]), template, tokenizer(begins=begins))
    for prompt in (*source.training, *source.held_out):
        assert prompt.tokens[:2] != (0, 0)
        assert (prompt.tokens[0] == 0) == (begins if once is None else once)


def test_special_tokens_by_the_names_of_chat_templates() -> None:
    fill = find_template("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ question }}", tokenizer())
    assert fill("q", {}, "here") == "<s>|</s>|</s>|q"
    assert fill("q", {"bos_token": "of the row"}, "here").startswith("of the row|")


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("blanks", [b"", b" \n\t\r\n" * 100])
@pytest.mark.parametrize("kind", ["lines.jsonl", "lines.json", "array.json", "array.JSON", "pretty.json", "rows.csv"])
def test_marks_and_blanks_before_the_first_row(mark: bytes, blanks: bytes, kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": word, "answer": "1"} for word in ("one", "two", "one two")]
    text = {
        "lines": "".join(json.dumps(row) + "\n" for row in rows),
        "array": json.dumps(rows),
        "pretty": json.dumps(rows, indent=2),
        "rows": "prompt,answer\n" + "".join(f"{row['prompt']},1\n" for row in rows),
    }[kind.partition(".")[0]]
    path = tmp_path / kind
    path.write_bytes(mark + (b"" if kind.endswith("csv") else blanks) + text.encode())
    assert loaded(path, "none", tokenizer()).counts.kept == 3


def test_a_template_file_with_a_mark_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.jinja").write_bytes(BOM + b"{{ question }} :")
    assert find_template("~/own.jinja", tokenizer())("one", {}, "here") == "one :"
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"own\.jinja cannot be read"):
        find_template(str(tmp_path / "own.jinja"), tokenizer())


def with_solutions(tmp_path: Path, *solutions: Any) -> Path:
    path = tmp_path / "solved.jsonl"
    words = ("one", "two", "one two", "two one", "two two")
    rows = [{"prompt": word, "answer": "1", "how": how} for word, how in zip(words, solutions, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_solutions_are_demonstrated_but_those_of_held_out_prompts(tmp_path: Path) -> None:
    path = with_solutions(tmp_path, *(f"be {word} one" for word in ("one", "two", "brief", "user", "system")))
    source = loaded(path, "none", tokenizer(), columns=Columns(solution="how"))
    assert source.longest_demonstration == 1 + 2 + 3 + 1
    drawn = source.demonstrations(200, step=0, seed=0)
    assert {each.prompt.text for each in drawn} == {prompt.text for prompt in source.training}
    ids = {word: place for place, word in enumerate(WORDS)}
    for each in drawn:
        assert each.response[0] == ids["be"], "no special token stands before a response"
        assert each.response[-1] == ids["</s>"] and each.response[-2] == ids["one"]


@pytest.mark.parametrize("solution", [None, "", " ", 3, ["a"]])
def test_a_row_without_a_solution_is_named(solution: Any, tmp_path: Path) -> None:
    path = with_solutions(tmp_path, "be", solution, "be")
    with pytest.raises(DataError, match=r"solved\.jsonl line 2 has the solution .* in how"):
        loaded(path, "none", tokenizer(), columns=Columns(solution="how"))
