"""From the files that a part has left, whole or not, to figures with their goals, and to what is wrong."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_check.figures import Figure, Goal, Reading

FOUND = "found.json"
# How pytest's own lines end, one a test: `tests/x.py::test_y[3] PASSED   [ 10%]`.
_TEST = re.compile(r"^(tests/\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)


def found_in(folder: Path) -> dict[str, Any] | None:
    """The part's file; None where it has written none yet."""
    path = folder / FOUND
    data: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return data


def tests(folder: Path) -> Reading:
    """Counted in the log, which has each test as soon as it has run."""
    log = (folder / "log.txt").read_text(errors="replace") if (folder / "log.txt").is_file() else ""
    by_name = dict(_TEST.findall(log))
    counts = Counter(by_name.values())
    reading = Reading(
        [Figure("tests that pass", counts["PASSED"]), Figure("tests that are skipped", counts["SKIPPED"])]
    )
    reading.wrong = [f"{name} does not pass" for name, how in by_name.items() if how in ("FAILED", "ERROR")]
    if not by_name:
        reading.notes.append("no test has ended")
    return reading


def warm_up(folder: Path) -> Reading:
    found = found_in(folder) or {}
    figures = [
        Figure("compiled kernels", found.get("kernels")),
        Figure("compiling, in worker processes", found.get("compile_seconds"), "s"),
        Figure("worker processes", found.get("workers")),
        Figure("tuning", found.get("tune_seconds"), "s"),
    ]
    return Reading([figure for figure in figures if figure.value is not None], found.get("wrong", []))


def resumed(folder: Path) -> Reading:
    found = found_in(folder) or {}
    reading = Reading(wrong=list(found.get("wrong", [])))
    for key, name, goal in (
        ("first_step_seconds", "first step, no kernel compiled before", 60.0),
        ("first_step_again_seconds", "first step after the resume, kernels kept", 20.0),
    ):
        if key in found:
            reading.figures.append(Figure(name, found[key], "s", Goal(goal)))
    for key, name, unit in (
        ("steps", "last step", ""),
        ("mismatch_max", "largest mismatch of log-probs", "nats"),
        ("sft_tokens_per_second", "warm start", "tokens/s"),
        ("train_tokens_per_second", "RL", "tokens/s"),
    ):
        if key in found:
            reading.figures.append(Figure(name, found[key], unit))
    return reading


def head(folder: Path) -> Reading:
    """Totals in terms of the floor and of the fastest peer; peaks beside the inputs and the weight's gradient."""
    reading, peaks = Reading(), {}
    for result in (found_in(folder) or {}).get("results", []):
        shape, contenders = result["shape"], result["contenders"]
        where = f"{shape['tokens']:,} tokens, {shape['share']:.0%}"
        ours = contenders["ours"]
        _judge(ours, f"{where}: the LM head", reading)
        if "median" not in ours:
            continue
        seconds = ours["median"]["wall_s"]
        goal = Goal(1.15) if shape["share"] < 1 else None
        over = ours.get("over_floor", {}).get("wall")
        reading.figures += [
            Figure(f"{where}: statistics and update", seconds * 1e3, "ms"),
            Figure(f"{where}: over the products alone", over, "x", goal),
            *(Figure(f"{where}: {phase}", each * 1e3, "ms") for phase, each in _phases(ours["rounds"]).items()),
        ]
        reading.figures.append(_against_peers(where, seconds, contenders, reading))
        if "peaks_mebibytes" in ours:
            peak, outputs = _peak_beside(shape, ours["peaks_mebibytes"])
            peaks[(shape["share"], shape["tokens"])] = peak - outputs
            name = f"{where}: peak beside inputs and weight's gradient"
            reading.figures.append(Figure(name, peak, "GiB", Goal(1.0)))
    reading.figures += list(_flatness(peaks))
    return reading


def _phases(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Median wall seconds of each phase."""
    return {phase: statistics.median(each[phase]["wall_s"] for each in rounds) for phase in rounds[0]}


def _peak_beside(shape: dict[str, Any], peaks_mebibytes: dict[str, float]) -> tuple[float, float]:
    """GiB over the inputs and the weight's gradient, and how much of it is the gradient of the hidden states."""
    item = 2 if shape["dtype"] == "bf16" else 4
    weight, hidden = (rows * shape["width"] * item / 2**30 for rows in (shape["vocabulary"], shape["tokens"]))
    update = peaks_mebibytes["update"] / 1024 - weight
    before = peaks_mebibytes["statistics"] / 1024
    return max(update, before), hidden if update >= before else 0.0


def _judge(outcome: dict[str, Any], name: str, reading: Reading) -> None:
    """Ours: wrong where it differs from float64, or cannot although there is memory."""
    if outcome.get("wrong"):
        reading.wrong.append(f"{name} computes something else than plain torch in float64: {outcome['differences']}")
    elif outcome.get("unavailable"):
        too_small = "OutOfMemory" in outcome["unavailable"]
        (reading.notes if too_small else reading.wrong).append(f"{name} could not: {outcome['unavailable']}")


def _against_peers(where: str, seconds: float, contenders: dict[str, Any], reading: Reading) -> Figure:
    peers = {}
    for key, outcome in contenders.items():
        if key.startswith(("floor", "ours")):
            continue
        if outcome.get("unavailable"):
            note = f"{outcome['label']} could not: {outcome['unavailable']}"
            if note not in reading.notes:
                reading.notes.append(note)
        elif outcome.get("wrong"):
            reading.notes.append(f"{where}: {outcome['label']} computes something else, and is left out")
        elif "median" in outcome:
            peers[outcome["label"]] = outcome["median"]["wall_s"]
    name = f"{where}: in terms of the fastest peer"
    if not peers:
        return Figure(name, None, "x", Goal(1.0), "no peer is installed")
    fastest = min(peers, key=peers.__getitem__)
    return Figure(name, seconds / peers[fastest], "x", Goal(1.0), fastest)


def _flatness(peaks: dict[tuple[float, int], float]) -> list[Figure]:
    """The peak at the most tokens less that at the fewest, for each share, without the hidden states' gradient."""
    figures = []
    for share in sorted({share for share, _ in peaks}):
        by_tokens = sorted((tokens, peak) for (other, tokens), peak in peaks.items() if other == share)
        if len(by_tokens) > 1:
            (fewest, low), (most, high) = by_tokens[0], by_tokens[-1]
            name = (
                f"{share:.0%}: growth of that peak, hidden states' gradient apart, from {fewest:,} to {most:,} tokens"
            )
            figures.append(Figure(name, high - low, "GiB"))
    return figures


# (shape, what, ratio, backend, tokens of the response) -> what is to be reached.
_UTILISATION = {
    ("8b", "statistics", "transformer_engine"): 0.60,
    ("8b", "update", "transformer_engine"): 0.45,
    ("8b", "statistics", "local"): 0.55,
    ("8b", "update", "local"): 0.42,
}


def full_size(folder: Path) -> Reading:
    reading = Reading()
    for result in (found_in(folder) or {}).get("results", []):
        backend, what = result["backend"], result.get("what")
        if what is None:
            reading.notes.append(f"{result['shape']} with {backend} layers does not fit this GPU")
            continue
        about = f"{backend} layers, {what}"
        if "ratio" in result:
            about += f" at {result['ratio']:.0%}"
        if what == "longest":
            note = "the search ended there" if result["at_limit"] else ""
            reading.figures.append(Figure(f"{about}: response that fits", result["response"], "tokens", note=note))
            continue
        about += f", {result['tokens']:,} tokens"
        if result.get("fits") is False:
            reading.figures.append(Figure(about, None, note="does not fit"))
            continue
        bound = _UTILISATION.get((result["shape"], what, backend)) if result["response"] == 8192 else None
        goal = Goal(bound, at_most=False) if bound else None
        used = result["utilisation"]
        reading.figures += [
            Figure(f"{about}: of the dense bf16 peak", used, "", goal, "" if used else "peak unknown"),
            Figure(f"{about}: speed", result["tokens_per_second"], "tokens/s"),
            _peak(about, result),
        ]
    return reading


def _peak(about: str, result: dict[str, Any]) -> Figure:
    is_aim = (result["shape"], result["what"], result["recompute"], result["response"]) == (
        "0.6b",
        "update",
        "none",
        29696,
    )
    held = result["held_gib"]
    note = "" if held is None else f"over {held:.1f} GiB held"
    return Figure(f"{about}: peak", result["peak_over_held_gib"], "GiB", Goal(26.0) if is_aim else None, note)


def selection(folder: Path) -> Reading:
    reading = Reading()
    found = found_in(folder) or {}
    for result in found.get("one_rank", []):
        where = f"{result['values']:,} values, {result['distribution']}"
        ours = result["contenders"]["kth_largest"]
        reading.figures += [
            Figure(f"{where}: kth_largest", ours["seconds"] * 1e3, "ms"),
            Figure(f"{where}: in terms of reading them once", ours["times_sweep"], "x"),
        ]
        for peer in ("torch.kthvalue", "torch.sort"):
            ratio = result["contenders"][peer]["times_kth_largest"]
            reading.figures.append(Figure(f"{where}: {peer} in terms of ours", ratio, "x"))
    reading.wrong = list(found.get("wrong", []))
    return reading


def hand_over(folder: Path) -> Reading:
    found = found_in(folder) or {}
    figures = [
        Figure("export under Hugging Face's names", found.get("export_gb_per_second"), "GB/s"),
        Figure("hand-over to the embedded engine", found.get("hand_over_gb_per_second"), "GB/s"),
        Figure("weights", found.get("gigabytes"), "GB"),
        Figure("embedded engine draws", found.get("tokens_per_second"), "tokens/s"),
    ]
    return Reading([figure for figure in figures if figure.value is not None], list(found.get("wrong", [])))
