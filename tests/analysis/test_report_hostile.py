"""Whatever a model writes is text on the page: no token, prompt, answer or name becomes markup or breaks the file."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile_page import HOSTILE, Elements, hostile_trace
from support.page_data import page_data
from support.synthetic_run import write_json_lines, write_run

from megatron_fork.analysis import write_page, write_report
from megatron_fork.analysis.page.payload import json_block
from megatron_fork.analysis.tokens import visible, visible_label
from megatron_fork.traces import Origin, TracedResponse, write_traces


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run <script>alert(2)<")
    tame = Elements(write_report(folder).read_text(encoding="utf-8"))
    (folder / "resolved.yaml").write_text(f'selection:\n  tokens: "{HOSTILE[0]}"\n  ratio: "<b>"\n')
    write_json_lines(folder / "traces" / "step-000001.jsonl", [hostile_trace(1, HOSTILE * 3)])
    page = write_report(folder).read_text(encoding="utf-8")
    hostile = Elements(page)
    assert set(hostile.tags) == set(tame.tags)
    assert hostile.tags.count("script") == tame.tags.count("script") == 3 and "img" not in hostile.tags
    assert hostile.attributes == tame.attributes
    assert "<script>alert(1)</script>" in hostile.text
    shown = next(each for each in page_data(page).responses if each.facts["step"] == 1)
    assert shown.tokens == [visible(token) for token in HOSTILE * 3]
    assert shown.prompt == visible("".join(HOSTILE)) and shown.answer == HOSTILE[0]


TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(codec=None), max_size=20),
    st.text("<>/!-script&;\\\"' ", max_size=20),
)


@given(st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3)))
@settings(deadline=None)
def test_no_json_leaves_its_element(value: object) -> None:
    """A parser of HTML finds one script element with what was written, whatever that is."""
    written = json_block(_visible(value))
    written.encode()
    elements = Elements(f'<script type="application/json">{written}</script>')
    assert elements.tags == ["script"] and "".join(elements.text) == written
    assert not set("<>&") & set(written) and json.loads(written) == _visible(value)


def _visible(value: object) -> object:
    """As texts are when they come to the page."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_visible(each) for each in value]
    return {visible(name): _visible(each) for name, each in value.items()}


@given(st.lists(TEXTS, min_size=1, max_size=8))
@settings(deadline=None, max_examples=8)
def test_no_text_of_a_trace_file_becomes_markup(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("traces")
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    *_, name, prompt, answer, reason = [*["x"] * 4, *texts]

    def page_with(tokens: list[str], *of: str) -> Elements:
        response = TracedResponse(
            of[0],
            "p",
            of[1],
            [1],
            of[2],
            0,
            "",
            [*range(len(tokens))],
            "stop",
            "given",
            token_texts=tokens,
            reason=of[3],
            reward=0.0,
        )
        write_traces(folder / "t.parquet", [response], Origin())
        return Elements(write_page([folder / "t.parquet"], folder / "page.html").read_text(encoding="utf-8"))

    tame, hostile = page_with(["x"], *"xxxx"), page_with(texts, name, prompt, answer, reason)
    assert set(hostile.tags) == set(tame.tags) and hostile.tags.count("script") == 3
    assert hostile.attributes == tame.attributes


def test_a_text_of_a_million_letters_is_cut_and_counted(tmp_path: Path) -> None:
    long = "<b>" * 350_000
    response = TracedResponse(
        "s",
        "p",
        long,
        [1],
        long,
        0,
        long,
        [0, 1],
        "stop",
        "given",
        token_texts=[long, "x"],
        entropy=[1.0, 2.0],
        reason=long,
    )
    write_traces(tmp_path / "t.parquet", [response], Origin())
    page = write_page([tmp_path / "t.parquet"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    (shown,) = page_data(page).responses
    assert shown.tokens[0].startswith("<b><b>") and shown.tokens[0].endswith("… (1,049,600 more characters)")
    assert shown.prompt.endswith("more characters)") and shown.facts["reason"].endswith("more characters)")


@given(st.text(st.characters(codec=None)))
@settings(deadline=None)
def test_visible_text_holds_no_control_or_surrogate(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not {unicodedata.category(character) for character in shown if character not in "\n\t"} & {"Cc", "Cf", "Cs"}
    assert "\n" not in visible_label(text)


def test_ordinary_text_is_shown_as_it_is() -> None:
    text = "Let β = ½, 因此 x² ≠ 0 🙂\n\\frac{1}{2}"
    assert visible(text) == text
