"""Whatever a model writes is text on the page: no token, prompt, answer or name becomes markup or breaks the file."""

import math
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import write_json_lines, write_run

from megatron_fork.analysis import write_report
from megatron_fork.analysis.tokens import fork_table, visible, visible_label
from megatron_fork.analysis.traces import Trace

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</div></article>",
    "&lt;b&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x1b[31m\x7f\x85",
    "\u202eevil\u2066",
    "\ud800",
    "\uffff",
    "\u2028]]>",
    "",
    "\r\n\t ",
]


class Elements(HTMLParser):
    """Collects the tags, the attribute names and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile_trace(step: int, tokens: list[str]) -> dict:
    return {
        "step": step,
        "prompt": "".join(HOSTILE),
        "answer": HOSTILE[0],
        "tokens": tokens,
        "entropy": [[1.0, math.nan, math.inf, -0.5][position % 4] for position in range(len(tokens))],
        "selected": [position % 2 == 0 for position in range(len(tokens))],
        "logprob": [[-0.5, math.nan, 1e9, -math.inf][position % 4] for position in range(len(tokens))],
        "reward": math.nan,
        "advantage": math.inf,
        "finish_reason": HOSTILE[1],
    }


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
