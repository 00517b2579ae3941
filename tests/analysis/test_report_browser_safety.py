"""What stands in traces is text in a real browser, whatever it is; scripts but the page's own do not run, and would be seen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import CHROMIUM, Browser, browser
from support.hostile_page import HOSTILE, hostile_trace
from support.synthetic_run import write_json_lines, write_run
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import write_page, write_report
from megatron_fork.traces import write_traces

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs `chromium` on PATH"),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_hostile_texts_are_text_and_nothing_runs(chromium: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_json_lines(folder / "traces" / "step-000001.jsonl", [hostile_trace(1, HOSTILE * 3)])
    chromium.console.clear()
    chromium.open(write_report(folder))
    chromium.choose("#by-step", "1")
    chromium.choose("#order", "mean")
    assert "<script>alert(1)</script>" in chromium.run("document.querySelector('.response').innerText")
    for number in range(len(HOSTILE)):
        chromium.run(
            f"point(document.querySelector('.response'), document.querySelector('.response').children[{number}])"
        )
    assert chromium.run("document.scripts.length") == 3 and chromium.run("document.images.length") == 0
    assert chromium.run("document.querySelectorAll('.charts svg').length") == 20
    assert chromium.console == []


def test_a_script_that_is_not_the_pages_own_is_refused(chromium: Browser, tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.parquet", traced_responses(4, 10), ORIGIN)
    page = write_page([tmp_path / "traces.parquet"], tmp_path / "page.html")
    added = tmp_path / "added.html"
    added.write_text(page.read_text().replace("</main>", "<script>document.title = 'ran'</script></main>"))
    chromium.open(added)
    assert chromium.run("document.title") != "ran" and any(
        "Content Security Policy" in line for line in chromium.console
    )


def test_console_messages_would_be_seen(chromium: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><title>broken</title><script>absent()</script>")
    chromium.console.clear()
    chromium.open(broken)
    assert chromium.console
