"""Whatever a model writes is text on the page: no token, prompt, answer or name becomes markup or breaks the file."""

import math
import unicodedata
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile_page import HOSTILE, Elements, hostile_trace
from support.synthetic_run import write_json_lines, write_run

from megatron_fork.analysis import write_report
from megatron_fork.analysis.tokens import fork_table, visible, visible_label
from megatron_fork.analysis.traces import Trace


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run <script>alert(2)<")
    tame = Elements(write_report(folder).read_text(encoding="utf-8"))
    (folder / "resolved.yaml").write_text(f'selection:\n  tokens: "{HOSTILE[0]}"\n  ratio: "<b>"\n')
    write_json_lines(folder / "traces" / "step-000001.jsonl", [hostile_trace(1, HOSTILE * 3)])
    hostile = Elements(write_report(folder).read_text(encoding="utf-8"))
    assert set(hostile.tags) == set(tame.tags)
    assert not {"script", "img"} & set(hostile.tags)
    assert hostile.attributes == tame.attributes
    assert "<script>alert(1)</script>" in hostile.text
    assert "{{ 7 * 7 }}{% raw %}" in hostile.text


def test_tokens_without_finite_entropy_are_counted_not_ranked() -> None:
    trace = Trace(1, "", "", ["a", "a", "b"], [1.0, math.nan, math.inf], [True] * 3, [0.0] * 3, 1.0, None, "stop")
    table = fork_table([trace])
    assert (table.distinct, table.ranked, table.not_finite) == (1, 1, 2)


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
