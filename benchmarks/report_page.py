"""The report page over much data: seconds and memory to build it, its size, and how soon Chromium shows and filters it.

    python benchmarks/report_page.py --out benchmarks/results/report_page.json

`50 MB`: one trace file of that size. `10,000 x 20k`: as many responses of 20,000 tokens, in 200 files that are links to one.
`load` is from the navigation to the load event, `list` to the first list of responses, which the script has made by then;
`filter` is from a change of the reward to the new list, `search` the same for the first search, which reads all texts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.browser import browser
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import write_page
from megatron_fork.traces import write_traces

FILTER = """(() => {
  const from = performance.now(), select = document.getElementById("by-reward");
  select.value = "v0";
  select.dispatchEvent(new Event("change", {bubbles: true}));
  document.body.offsetHeight;
  return performance.now() - from;
})()"""
SEARCH = """(() => {
  const from = performance.now();
  document.getElementById("search").value = " wait w123";
  filterList();
  document.body.offsetHeight;
  return performance.now() - from;
})()"""
TIMES = """(() => {
  const {responseStart, domContentLoadedEventEnd, loadEventEnd} = performance.getEntriesByType("navigation")[0];
  return {list: domContentLoadedEventEnd, load: loadEventEnd, rows: document.querySelectorAll("article").length,
    elements: document.querySelectorAll("*").length};
})()"""


def of_50_mb(folder: Path) -> None:
    """Responses of 2,000 tokens until the file has 50 MB."""
    write_traces(folder / "t.parquet", traced_responses(200, 2000), ORIGIN)
    each = (folder / "t.parquet").stat().st_size / 200
    write_traces(folder / "t.parquet", traced_responses(round(50e6 / each), 2000), ORIGIN)


def of_10_000(folder: Path) -> None:
    write_traces(folder / "t000.parquet", traced_responses(50, 20_000), ORIGIN)
    for number in range(1, 200):
        os.link(folder / "t000.parquet", folder / f"t{number:03d}.parquet")


CASES = {"50 MB": of_50_mb, "10,000 x 20k": of_10_000}


def built(traces: Path, page: Path) -> dict[str, float]:
    """Seconds and peak GiB of a process of its own that builds the page."""
    started = time.perf_counter()
    told = subprocess.run(
        [sys.executable, __file__, "--build", str(traces), str(page)], check=True, capture_output=True, text=True
    ).stdout
    return {"process_seconds": round(time.perf_counter() - started, 2), **json.loads(told)}


def opened(page: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {name: [] for name in ("wall", "load", "list", "filter", "search")}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as chromium:
            started = time.perf_counter()
            chromium.open(page)
            found["wall"].append(time.perf_counter() - started)
            times = chromium.run(TIMES)
            for name in ("load", "list"):
                found[name].append(times[name] / 1000)
            found["filter"].append(chromium.run(FILTER) / 1000)
            found["search"].append(chromium.run(SEARCH) / 1000)
            assert not chromium.console, chromium.console
    seconds = {name: round(median(values), 3) for name, values in found.items()}
    return {"seconds": seconds, "rows": times["rows"], "elements": times["elements"]}


def photograph(page: Path, target: Path) -> None:
    """The page wide and light, and narrow and dark, to be looked at."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as chromium:
        for name, width, dark in (("wide", 1280, False), ("narrow", 390, True)):
            chromium.open(page, width=width, dark=dark, touch=dark)
            chromium.photograph(target.with_name(f"{target.name}_{name}.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build", nargs=2, type=Path)
    parser.add_argument("--photographs", type=Path, help="a folder for pictures of the pages")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.build:
        started = time.perf_counter()
        write_page([options.build[0]], options.build[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": round(time.perf_counter() - started, 2), "peak_gib": round(peak, 2)}))
        return
    cases: dict[str, Any] = {}
    for name in options.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            traces, page = Path(folder) / "traces", Path(folder) / "page.html"
            traces.mkdir()
            CASES[name](traces)
            size = sum(path.stat().st_size for path in traces.iterdir()) / 1e6
            build = built(traces, page)
            cases[name] = {
                "traces_mb": round(size, 1),
                "page_mb": round(page.stat().st_size / 1e6, 1),
                "build": build,
                "open": opened(page, options.rounds),
            }
            if options.photographs:
                options.photographs.mkdir(parents=True, exist_ok=True)
                photograph(page, options.photographs / name.replace(" ", "_").replace(",", ""))
            print(name, json.dumps(cases[name]), flush=True)
    if options.out:
        result = {
            "command": f"python benchmarks/report_page.py --rounds {options.rounds}",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "cases": cases,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
