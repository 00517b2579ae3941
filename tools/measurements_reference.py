"""Write docs/measurements.md: every committed result with the script that makes it; `tests/tools/test_book.py` compares.

python tools/measurements_reference.py
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

PROJECT = Path(__file__).parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
HEAD = """# Measurements

Made by `python tools/measurements_reference.py` from `benchmarks/`; a test compares. Each file of `benchmarks/results/` has
its script; the file has the whole command, or the script's first lines have it. A script says what it measures against; where a
peer or a floor can be had here, it is measured in the same run. Timings are never asserted in tests.

A figure of these pages without a file was measured once, and says so where it stands. [gpu_check.md](gpu_check.md) is the
command that measures on a GPU.

| question | command | results | told in |
|---|---|---|---|
"""
_SCRIPT = re.compile(r"benchmarks/(\w+)\.py")


def markdown() -> str:
    """A row a script, in the order of the scripts' names."""
    made = defaultdict(list)
    for result in sorted(path for path in RESULTS.iterdir() if path.is_file()):
        made[script_of(result)].append(result)
    return HEAD + "".join(_row(script, results) for script, results in sorted(made.items()))


def script_of(result: Path) -> Path:
    """The script that made a result: that of its command, or the one that names its file. Raises LookupError if none does."""
    scripts = {path.stem: path for path in sorted((PROJECT / "benchmarks").glob("*.py"))}
    command = _command(result) or ""
    named = _SCRIPT.search(command)
    if named and named[1] in scripts:
        return scripts[named[1]]
    if "scripts/" in command:
        return PROJECT / re.findall(r"scripts/[\w/]+\.sh", command)[0]
    naming = [path for path in scripts.values() if re.search(rf"\b{re.escape(result.name)}\b", path.read_text())]
    for page in (PROJECT / "docs").glob("*.md"):
        lines = re.findall(rf"benchmarks/(\w+)\.py\b[^\n]*results/{re.escape(result.name)}", page.read_text())
        naming += [scripts[name] for name in lines if name in scripts]
    naming = naming or [path for name, path in scripts.items() if f"{result.stem}_".startswith(f"{name}_")]
    if not naming:
        raise LookupError(f"neither a script of benchmarks/ nor a page says what makes {result.name}")
    return min(naming, key=lambda path: not result.stem.startswith(path.stem))


def _command(result: Path) -> str | None:
    """The command as the result has it, its first one if it has several."""
    text = result.read_text(encoding="utf-8")
    if result.suffix != ".json":
        return text.partition("\n")[0]
    found = re.search(r'"command": ("(?:[^"\\]|\\.)*")', text)
    return str(json.loads(found[1])) if found else None


def _row(script: Path, results: list[Path]) -> str:
    text = script.read_text(encoding="utf-8")
    if script.suffix == ".py":
        question = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
        command = f"python benchmarks/{script.name}"
    else:
        question = text.splitlines()[1].removeprefix("# ")
        command = f"bash {script.relative_to(PROJECT).as_posix()}"
    pages = [
        page.name
        for page in sorted((PROJECT / "docs").glob("*.md"))
        if page.name != "measurements.md"
        and (script.name in page.read_text() or any(each.name in page.read_text() for each in results))
    ]
    cells = (
        " ".join(question.split()).replace("|", "\\|"),
        f"`{command}`",
        ", ".join(f"`{each.name}`" for each in results),
        ", ".join(f"[{name}]({name})" for name in pages),
    )
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    (PROJECT / "docs" / "measurements.md").write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
