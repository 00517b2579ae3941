"""A terminal gets a live display, a log gets plain lines, and other ranks say nothing."""

import io

from rich.console import Console

from megatron_fork.run.console import Display

METRICS = {
    "rollout/pass_rate": 0.5,
    "entropy/mean": 0.25,
    "selection/threshold": 1.3,
    "selection/fraction": 0.2,
    "loss": 0.1,
}


def shown(*, terminal: bool, speaks: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=140, highlight=False)
    display = Display(speaks=speaks, console=console)
    with display.stage("train", 3, done=1) as stage:
        stage.advance({**METRICS, "tokens_per_second": 4310.0})
        stage.advance({**METRICS, "selection/threshold": float("nan")})
    return stream.getvalue()


def test_log_lines_are_plain() -> None:
    lines = shown(terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["train 2/3", "train 3/3"]
    for part in (
        "pass rate 0.500",
        "entropy 0.250",
        "threshold 1.300",
        "selected 20.0%",
        "tokens/s 4,310",
        "ETA 0:00:0",
    ):
        assert part in lines[0]
    assert "threshold" not in lines[1]
    assert "\x1b" not in "".join(lines)


def test_terminal_is_live() -> None:
    text = shown(terminal=True)
    assert "\x1b" in text
    for part in ("train", "3/3", "pass rate", "entropy", "ETA"):
        assert part in text


def test_other_ranks_are_silent() -> None:
    assert shown(terminal=False, speaks=False) == ""


def test_the_time_that_is_left_is_shown_once_it_is_measured() -> None:
    """The first of many responses are the short ones: their pace says nothing."""
    for terminal in (False, True):
        stream = io.StringIO()
        display = Display(
            speaks=True, console=Console(file=stream, force_terminal=terminal, width=140, highlight=False)
        )
        with display.stage("responses", 10, measured=4) as stage:
            stage.advance({}, steps=3)
            assert "ETA" not in stream.getvalue()
            assert stage.line({}) == "responses 3/10"
            stage.advance({})
            assert stage.line({}).startswith("responses 4/10  ETA 0:00:0")
        assert "ETA" in stream.getvalue()
