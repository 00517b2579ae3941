"""The book is built without a warning: links, anchors, pictures and names of the API are there; no page asks another host."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.commands import PROJECT

sys.path.append(str(PROJECT / "tools"))
import cli_reference
import measurements_reference


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("book") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out


class Requests(HTMLParser):
    """What a browser fetches by itself when it opens the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.found.append(given["src"] or "")
        if tag == "link" and "stylesheet" in (given.get("rel") or ""):
            self.found.append(given.get("href") or "")


def test_pages_ask_no_other_host(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if "examples" not in page.parts]
    assert len(pages) > 40
    for page in pages:
        asked = Requests()
        asked.feed(page.read_text())
        assert asked.found and not [each for each in asked.found if re.match(r"(?:https?:)?//", each)], page


def test_every_page_is_in_the_book_and_names_are_rendered(site: Path) -> None:
    assert {page.stem for page in (PROJECT / "docs").glob("*.md")} <= {page.stem for page in site.glob("*.html")}
    api = (site / "api.html").read_text()
    for name in re.findall(r"^::: (\S+)$", (PROJECT / "docs" / "api.md").read_text(), re.MULTILINE):
        assert f'id="{name}"' in api, name


def test_commands_are_as_declared() -> None:
    assert (PROJECT / "docs" / "cli.md").read_text() == cli_reference.markdown(), "run python tools/cli_reference.py"


def test_every_result_has_its_script() -> None:
    written = (PROJECT / "docs" / "measurements.md").read_text()
    assert written == measurements_reference.markdown(), "run python tools/measurements_reference.py"


def test_versions_agree() -> None:
    """What is released, cited and told to users."""
    version = re.findall(
        r'^__version__ = "(.+)"$', (PROJECT / "megatron_fork" / "__init__.py").read_text(), re.MULTILINE
    )
    cited = re.findall(r"^version: (.+)$", (PROJECT / "CITATION.cff").read_text(), re.MULTILINE)
    told = re.findall(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version == cited == told[:1]


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    files = [*(PROJECT / "megatron_fork").rglob("*.py"), *(PROJECT / "scripts").glob("*.sh")]
    code = "\n".join(path.read_text() for path in files)
    rows = re.findall(r"^\| (`[^`]+`) \|", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 3
    for row in rows:
        for piece in filter(None, (each.strip(" :=") for each in row.strip("`").split("..."))):
            assert piece in code, row
