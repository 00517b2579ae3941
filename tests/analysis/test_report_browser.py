"""A real browser opens the page without a console message or a request, and every control does what it says."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.browser import CHROMIUM, Browser, browser
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import write_page
from megatron_fork.traces import write_traces

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs `chromium` on PATH"),
]
LONG = 3400


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets, two kinds, four steps, ten prompts, 84 responses; the first is long, and one says ½ in parts of a character."""
    folder = tmp_path_factory.mktemp("page")
    trained = list(traced_responses(80, 60, samples=8, steps=4))
    trained[0] = next(traced_responses(1, LONG))
    half = ["one ", "\udcc2", "\udcbd", "\n", "more"]
    columns = {"entropy": None, "selected": None, "advantage": None, "step": 3, "reward": None, "kind": "evaluation"}
    held_out = [
        replace(
            each,
            set="held_out",
            **columns,
            tokens=[*range(5)],
            token_texts=half,
            logprob=[-0.5] * 5,
            weight_version=None,
        )
        for each in trained[:4]
    ]
    write_traces(folder / "traces.parquet", [*trained, *held_out], ORIGIN)
    return write_page([folder / "traces.parquet"], folder / "page.html")


@pytest.fixture
def opened(chromium: Browser, page: Path) -> Iterator[Browser]:
    chromium.console.clear()
    chromium.requests.clear()
    chromium.open(page)
    yield chromium
    assert chromium.console == []
    assert chromium.requests == [page.as_uri()]


def rows(opened: Browser) -> int:
    return opened.run("document.querySelectorAll('#list article').length")


def text(opened: Browser, selector: str) -> str:
    return opened.run(f"document.querySelector({json.dumps(selector)}).innerText")


def facts(opened: Browser) -> str:
    return "" if opened.run("document.getElementById('facts').hidden") else text(opened, "#facts")


def test_responses_come_in_pieces_and_are_built_when_they_are_opened(opened: Browser) -> None:
    assert text(opened, "#found") == "84 responses" and rows(opened) == 25
    assert opened.run("document.querySelectorAll('.response').length") == 1
    for shown in (50, 75, 84):
        opened.click("#more")
        assert rows(opened) == shown
    assert opened.run("document.getElementById('more').hidden")
    opened.click(".opener", 1)
    assert opened.run("document.querySelectorAll('.response').length") == 2
    assert opened.run("document.querySelectorAll('.opener')[1].ariaExpanded") == "true"
    opened.click(".opener", 1)
    assert opened.run("document.querySelectorAll('.response').length") == 1


def test_the_list_tells_prompts_of_one_template_apart(chromium: Browser, tmp_path: Path) -> None:
    """Their common beginning is left out of lists, and shown with the prompt."""
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    asked = ["How many apples are there?", "How much does he pay?", "When does it end?"]
    traced = [
        replace(each, prompt=f"{before}{question}", prompt_id=question)
        for each, question in zip(traced_responses(3, 5), asked, strict=True)
    ]
    write_traces(tmp_path / "traces.parquet", traced, ORIGIN)
    chromium.console.clear()
    chromium.open(write_page([tmp_path / "traces.parquet"], tmp_path / "page.html"))
    shown = chromium.run("[...document.querySelectorAll('.asks')].map((each) => each.textContent)")
    assert shown == [f"…{question}" for question in asked] and chromium.console == []
    options = chromium.run("[...document.getElementById('by-prompt').options].map((each) => each.textContent)")
    assert options[1:] == [f"{place}: …{question}" for place, question in enumerate(asked, start=1)]
    assert before.strip() in chromium.run("document.querySelector('.prompt').textContent")


def test_a_long_response_comes_in_pieces(opened: Browser) -> None:
    count = "document.querySelector('.response').childElementCount"
    assert opened.run(count) == 1500
    opened.run("document.querySelector('.transcript .more').focus()")
    opened.press("Enter")
    assert opened.run(count) == 3000 and "token 1,501 of" in facts(opened), "reading goes on with the keyboard"
    opened.click(".transcript .more")
    assert opened.run(count) == LONG and not opened.run("!!document.querySelector('.transcript .more')")


@pytest.mark.parametrize(
    ("control", "value", "wanted"),
    [
        ("by-set", "1", 4),
        ("by-kind", "0", 80),
        ("by-step", "2", 20),
        ("by-step", "3", 24),
        ("by-reward", "v2", 4),
        ("by-prompt", "0", 12),
        ("by-prompt", "9", 8),
    ],
)
def test_a_filter_leaves_what_it_names(opened: Browser, control: str, value: str, wanted: int) -> None:
    opened.choose(f"#{control}", value)
    assert text(opened, "#found") == f"{wanted} of 84 responses" and rows(opened) == min(wanted, 25)


def test_filters_work_together_and_reset_ends_all(opened: Browser) -> None:
    opened.choose("#by-reward", "v0")
    opened.choose("#by-step", "1")
    assert set(
        opened.run("[...document.querySelectorAll('.opener')].map((row) => row.innerText.includes('✓ right'))")
    ) == {True}
    assert set(
        opened.run("[...document.querySelectorAll('.opener')].map((row) => row.innerText.includes('step 1'))")
    ) == {True}
    opened.choose("#by-reward", "r0")
    assert "✕ wrong" in text(opened, ".opener")
    opened.choose("#by-set", "1")
    assert text(opened, "#found") == "0 of 84 responses" and rows(opened) == 0
    opened.click("#filters button")
    opened.wait("document.querySelector('#found').innerText === '84 responses'")


def test_search_finds_text_over_tokens_and_marks_it(opened: Browser) -> None:
    opened.press("Tab")
    opened.run("document.getElementById('search').focus()")
    opened.type("what is 3 + 4")
    opened.wait("document.querySelector('#found').innerText === '8 of 84 responses'")
    opened.click("#filters button")
    opened.click("#search")
    opened.type("one ½")
    opened.wait("document.querySelector('#found').innerText === '4 of 84 responses'")
    opened.run("document.getElementById('search').value = 'MORE', filterList()")
    assert opened.run("[...document.querySelectorAll('.matched')].map((token) => token.textContent)") == ["more"]
    opened.run("document.getElementById('search').value = 'no such text', filterList()")
    assert rows(opened) == 0


def test_orders(opened: Browser) -> None:
    opened.choose("#order", "longest")
    assert f"{LONG:,} tokens" in text(opened, ".opener")
    opened.choose("#order", "shortest")
    assert "5 tokens" in text(opened, ".opener")
    opened.choose("#order", "mean")
    means = opened.run(
        "[...document.querySelectorAll('.opener')].map((row) => Number(row.innerText.match(/([\\d.]+) nats/)[1]))"
    )
    assert means == sorted(means, reverse=True)


def test_selected_tokens_are_marked_and_colours_rise_with_entropy(opened: Browser) -> None:
    expected = next(traced_responses(1, LONG))
    classes = opened.run("[...document.querySelector('.response').children].map((token) => token.className)")
    assert ["selected" in each for each in classes] == expected.selected[:1500]
    levels = [int(each.split("level-")[1].split()[0]) for each in classes]
    pairs = sorted(zip(expected.entropy, levels, strict=False))
    assert all(low <= high for (_, low), (_, high) in itertools.pairwise(pairs)) and {0, 15} <= set(levels)


def test_pointing_at_a_token_shows_its_numbers(opened: Browser) -> None:
    expected = next(traced_responses(1, LONG))
    opened.point(".response span", 7)
    shown = facts(opened)
    assert shown.splitlines()[0] == expected.token_texts[7].replace(" ", "␣")
    assert f"token 8 of {LONG:,}" in shown and ("carried gradient" in shown) == expected.selected[7]
    rank = 1 + sum(entropy > expected.entropy[7] * 1.0004 for entropy in expected.entropy)
    number = float(shown.split("entropy ")[1].split(" nats")[0])
    assert number == pytest.approx(expected.entropy[7], rel=5e-4)
    assert abs(int(shown.split("rank ")[1].split(" of")[0].replace(",", "")) - rank) <= 3
    assert float(shown.split("log-prob ")[1].split(",")[0]) == pytest.approx(expected.logprob[7], rel=5e-4)
    opened.point("h1")
    assert facts(opened) == ""


def test_keys_go_through_a_response(opened: Browser) -> None:
    opened.run("document.querySelector('.opener').focus()")
    opened.press("Tab")
    assert opened.run("document.activeElement.className") == "response"
    opened.press("ArrowRight")
    assert "token 1 of" in facts(opened)
    opened.press("ArrowRight")
    opened.press("ArrowLeft")
    opened.press("n")
    assert "carried gradient" in facts(opened)
    first = facts(opened)
    opened.press("n")
    assert facts(opened) != first and "carried gradient" in facts(opened)
    opened.press("p")
    assert facts(opened) == first
    opened.press("Escape")
    assert facts(opened) == ""


def test_keys_open_and_close(opened: Browser) -> None:
    opened.run("document.querySelectorAll('.opener')[1].focus()")
    for wanted in (2, 1):
        opened.press("Enter")
        assert opened.run("document.querySelectorAll('.response').length") == wanted


def test_every_control_has_a_name_and_can_be_reached(opened: Browser) -> None:
    controls = opened.run(
        "[...document.querySelectorAll('input, select, button')].filter((each) => each.checkVisibility())"
        ".map((each) => [each.tabIndex, each.labels?.[0]?.innerText ?? each.innerText])"
    )
    assert len(controls) > 30
    assert all(index == 0 and name.strip() for index, name in controls)


def test_the_table_is_sorted_and_filtered(opened: Browser) -> None:
    def column(number: int) -> list[str]:
        return opened.run(
            f"[...document.querySelectorAll('#table tbody td:nth-child({number})')].map((cell) => cell.innerText)"
        )

    assert len(column(1)) == 20
    for number, name in ((2, "counts"), (3, "entropies"), (4, "selected")):
        found = {}
        for _ in range(2):
            opened.click(f"#table button[data-column={name}]")
            values = [float(each.removesuffix(" %").replace(",", "")) for each in column(number)]
            order = opened.run(f"document.querySelector('#table button[data-column={name}]').parentElement.ariaSort")
            assert values == sorted(values, reverse=order == "descending")
            found[order] = values
        assert set(found) == {"ascending", "descending"}
    opened.click("#table button[data-column=token]")
    assert column(1) == sorted(column(1))
    opened.click("#table .more")
    assert len(column(1)) > 20
    opened.click("#table-text")
    opened.type(" however")
    assert column(1) == ["␣however"]
    opened.click("#table tbody button")
    assert opened.run("document.getElementById('search').value") == " however"
    assert opened.run("document.querySelectorAll('.matched').length") > 0


def test_a_higher_count_leaves_fewer_tokens(opened: Browser) -> None:
    opened.run("document.getElementById('table-count').focus()")
    opened.run("document.getElementById('table-count').select()")
    opened.type("90")
    counts = opened.run(
        "[...document.querySelectorAll('#table tbody td:nth-child(2)')].map((cell) => Number(cell.innerText))"
    )
    assert counts and min(counts) >= 90


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_the_systems_until_the_reader_chooses(chromium: Browser, page: Path, dark: bool) -> None:
    def is_dark() -> bool:
        background = chromium.run("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(", "))) < 384

    chromium.open(page, dark=dark)
    assert is_dark() == dark
    for choice, wanted in (("light", False), ("dark", True), ("", dark)):
        chromium.choose("#theme", choice)
        assert is_dark() == wanted


def test_a_phone_shows_all_without_scrolling_sideways(chromium: Browser, page: Path) -> None:
    chromium.console.clear()
    chromium.open(page, width=360, height=740, touch=True)
    assert chromium.run("document.documentElement.scrollWidth") <= 360
    chromium.tap(".response span", 3)
    chromium.wait("!document.getElementById('facts').hidden")
    box = chromium.run("JSON.stringify(document.getElementById('facts').getBoundingClientRect())")
    assert json.loads(box)["left"] >= 0 and json.loads(box)["right"] <= 360
    assert "token 4 of" in text(chromium, "#facts")
    small = chromium.run(
        "[...document.querySelectorAll('input, select, .opener, .more')].filter((each) => each.checkVisibility()"
        " && each.getBoundingClientRect().height < 32).length"
    )
    assert small == 0, "too small for a finger"
    assert chromium.console == []
