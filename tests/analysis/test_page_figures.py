"""Figures for publication: SVG without fonts and PNG, of the width of a column and of a page, the same for the same data."""

import itertools
import struct
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.colors
import numpy
import pytest
from support.synthetic_run import write_json_lines
from support.synthetic_traces import ORIGIN, traced_responses

from megatron_fork.analysis import AnalysisError, PlottedCurve, save_curves, write_page
from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.publication import COLOURS, DASHES, SIZES
from megatron_fork.errors import RunFolderError
from megatron_fork.traces import TracedResponse, write_traces

OVERLAP = [
    PlottedCurve("with the base model", [0, 10, 20, 30], [1.0, 0.95, float("nan"), 0.87]),
    PlottedCurve("with the final model", [0, 10, 20, 30], [0.87, 0.9, 0.96, 1.0]),
]


def saved(folder: Path) -> list[Path]:
    return save_curves(folder, "overlap", OVERLAP, x_label="training step", y_label="overlap")


def test_widths_are_those_of_a_column_and_of_a_page(tmp_path: Path) -> None:
    files = saved(tmp_path)
    assert [file.name for file in files] == [f"overlap-{width}.{kind}" for width in SIZES for kind in ("svg", "png")]
    for width, (inches, _) in SIZES.items():
        assert inches in (3.3, 6.8)
        svg = ElementTree.parse(tmp_path / f"overlap-{width}.svg").getroot()
        assert float(svg.get("width").removesuffix("pt")) == pytest.approx(72 * inches, abs=0.01)
        assert struct.unpack(">I", (tmp_path / f"overlap-{width}.png").read_bytes()[16:20])[0] == round(300 * inches)


def test_letters_are_paths_and_nothing_is_asked_for(tmp_path: Path) -> None:
    text = saved(tmp_path)[0].read_text()
    assert "<text" not in text and "font-family" not in text and "<path" in text
    assert 'href="http' not in text and "<image" not in text


def test_same_data_give_same_bytes(tmp_path: Path) -> None:
    first, second = ([file.read_bytes() for file in saved(tmp_path / name)] for name in ("a", "b"))
    assert first == second


def test_every_plot_of_traces_and_every_curve_of_a_run(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.parquet", traced_responses(8, 50), ORIGIN)
    write_page([tmp_path / "t.parquet"], tmp_path / "page.html", figures=tmp_path / "of_traces")
    plots = {"distribution", "percentiles", "correctness", "positions"}
    assert {file.stem.rpartition("-")[0] for file in (tmp_path / "of_traces").iterdir()} == plots
    metrics = [{"stage": "train", "step": step, "loss": 0.1 * step, "learning_rate": 1e-6} for step in range(3)]
    write_json_lines(tmp_path / "run" / "metrics.jsonl", metrics)
    write_page([tmp_path / "run"], tmp_path / "page.html", figures=tmp_path / "of_run")
    assert {file.stem.rpartition("-")[0] for file in (tmp_path / "of_run").iterdir()} == {"update", "rate"}


# Machado and others 2009: what people without the long, middle or short cones see of linear red, green and blue.
SEEN_AS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(linear: numpy.ndarray) -> numpy.ndarray:
    to_cones = numpy.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    to_lab = numpy.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return to_lab @ numpy.cbrt(to_cones @ linear.clip(0))


@pytest.mark.parametrize("sight", list(SEEN_AS))
def test_colours_of_one_figure_can_be_told_apart(sight: str) -> None:
    of_plots = [PALETTE[name][0] for name in ("ink", "blue", "orange")]
    for colours in (COLOURS[:5], of_plots, [PALETTE[name][0] for name in ("stone", "orange")]):
        seen = []
        for colour in colours:
            srgb = numpy.array(matplotlib.colors.to_rgb(colour))
            linear = numpy.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
            seen.append(oklab(numpy.array(SEEN_AS[sight]) @ linear))
        for one, other in itertools.combinations(seen, 2):
            assert numpy.linalg.norm(one - other) > 0.08


@pytest.mark.parametrize(("name", "curves"), [("../up", OVERLAP), ("", OVERLAP), ("a b", OVERLAP), ("none", [])])
def test_what_cannot_be_a_figure_is_refused(tmp_path: Path, name: str, curves: list[PlottedCurve]) -> None:
    with pytest.raises(AnalysisError, match="figure"):
        save_curves(tmp_path, name, curves, x_label="x", y_label="y")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        saved(tmp_path / "file")


def test_a_label_is_no_formula(tmp_path: Path) -> None:
    assert save_curves(tmp_path, "cost", [PlottedCurve("$\\frac{", [0, 1], [1, 2])], x_label="$", y_label="$x_")


def test_figures_of_nothing_are_refused(tmp_path: Path) -> None:
    unmeasured = TracedResponse("", "p", "question", [1], "", 0, "ab", [7], "stop", "given")
    write_traces(tmp_path / "t.parquet", [unmeasured], ORIGIN)
    with pytest.raises(AnalysisError, match="no entropies and no metrics"):
        write_page([tmp_path / "t.parquet"], tmp_path / "page.html", figures=tmp_path / "figures")


def test_as_many_lines_as_there_are_looks(tmp_path: Path) -> None:
    curves = [PlottedCurve(f"run {number}", [0, 1], [number, number + 1]) for number in range(13)]
    assert save_curves(tmp_path, "lines", curves[:12], x_label="x", y_label="y")
    looks = {(COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]) for number in range(12)}
    assert len(looks) == 12
    with pytest.raises(AnalysisError, match="13 curves"):
        save_curves(tmp_path, "lines", curves, x_label="x", y_label="y")
