"""The report holds what the run wrote, in one file that asks for nothing, and is the same for the same run."""

import base64
import hashlib
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.page_data import page_data
from support.synthetic_run import write_run

from megatron_fork.analysis import write_report

CHARTS = (
    *(
        "pass-rate-wide",
        "pass-rate",
        "entropy",
        "length",
        "groups",
        "fraction",
        "overlap",
        "update",
        "clip",
        "kl",
        "rate",
    ),
    *("mismatch", "time", "speed", "sft-loss", "distribution-wide", "distribution"),
    *("percentiles", "correctness", "positions"),
)
PROJECT = Path(__file__).parents[2]
# Pixels that the charts of a page have on a screen of 400: the rest are margins and paddings of the style sheet.
ROOM = 400 - 2 * (16 + 18 + 1)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "forking-demo"
    return write_report(write_run(folder)).read_text(encoding="utf-8")


def svgs(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_returns_the_path_and_leaves_no_partial_file(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path))
    assert path == tmp_path / "report.html"
    assert [found.name for found in tmp_path.iterdir() if "report" in found.name] == ["report.html"]


def test_headline_numbers(page: str) -> None:
    for text in ("forking-demo", "22.0 ± 2.0 %", "62.0 ± 2.0 %", "27.0 %", "67.0 %", "+40.0 points", "1 h 23 min"):
        assert text in page
    for text in ("1.72 B", "on 8 ranks", "ratio 0.2", "after 20 of SFT", ">finished<"):
        assert text in page


def test_every_chart_is_drawn_and_is_well_formed(page: str) -> None:
    drawn = svgs(page)
    assert len(drawn) == len(CHARTS)
    for identifier, svg in zip(CHARTS, drawn, strict=True):
        ElementTree.fromstring(svg)
        assert f'id="{identifier}-' in svg


def test_text_of_charts_can_be_read_on_a_small_screen(page: str) -> None:
    for identifier, svg in zip(CHARTS, svgs(page), strict=True):
        width = float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
        smallest = min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg))
        room = 1160 - 2 * (28 + 18 + 1) if identifier.endswith("-wide") else ROOM
        assert smallest * room / width >= 10, identifier


def test_no_two_elements_share_an_id_and_every_reference_resolves(page: str) -> None:
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    references = re.findall(r'(?:xlink:href="#|url\(#)([^")]*)', page)
    assert references
    assert set(references) <= set(identifiers)


def test_asks_the_network_for_nothing(page: str) -> None:
    outside_links = re.sub(r'<a href="https://arxiv\.org[^"]*">|xmlns(:xlink)?="[^"]*"', "", page)
    assert "http://" not in outside_links
    assert "https://" not in outside_links
    for asset in ("<img", "<link", "@import", "src=", "fetch(", "XMLHttpRequest", "import("):
        assert asset not in outside_links


def test_runs_its_own_script_alone(page: str) -> None:
    """The policy forbids whatever is not the one script whose hash it names."""
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in rules["script-src"] and set(rules) <= {
        "default-src",
        "script-src",
        "style-src",
        "base-uri",
        "form-action",
    }
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert rules["script-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    for way in ("eval(", "Function(", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
        assert way not in script


def test_same_run_gives_same_bytes(tmp_path: Path) -> None:
    first = write_report(write_run(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert re.search(rb"\d{4}-\d{2}-\d{2}T", first) is None


def test_transcripts_and_config_are_shown(page: str) -> None:
    shown = page_data(page).responses
    assert len(shown) == 9
    assert all("What is 2x?\nPut the final answer" in each.prompt for each in shown)
    assert "<summary>Resolved config</summary>" in page
    assert "model: &#34;qwen3 &lt;tiny&gt;&#34;" in page


def test_the_responses_are_counted_by_set(page: str) -> None:
    row = re.search(r'<table id="sets">.*?<tbody>(.*?)</tbody>', page, flags=re.DOTALL)[1]
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[:4] == ["training", "trained on", "1", "9"] and cells[5:] == ["90", "0.0 %"]


def test_every_file_of_the_page_is_in_the_package() -> None:
    patterns = re.search(r'"megatron_fork.analysis.page": \[(.*?)\]', (PROJECT / "setup.py").read_text())[1]
    folder = PROJECT / "megatron_fork" / "analysis" / "page"
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    assert len(others) > 5 and all(f'"*{path.suffix}"' in patterns for path in others)
