"""Every traced token is in one bin: those too small to fork in the first, the others by the logarithm of their entropy."""

import math

import numpy
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_run import metrics_of_run, trace_of_step, write_json_lines

from megatron_fork.analysis import write_report
from megatron_fork.analysis.distribution import LOWEST, bin_edges, counts, in_words

ENTROPIES = st.lists(
    st.one_of(st.floats(-1e-6, 14.0), st.sampled_from([0.0, LOWEST, 1e-9, 0.01, 1.0, 10.0, math.log(151_936)])),
    min_size=1,
)


@given(ENTROPIES)
def test_every_token_is_counted_once(values: list[float]) -> None:
    entropy = numpy.array(values)
    edges = bin_edges(float(entropy.max()))
    found = counts(entropy, edges)
    assert found.sum() == len(values) and len(found) == len(edges)
    assert found[0] == sum(value < LOWEST for value in values)
    steps = numpy.diff(numpy.log10(edges))
    assert numpy.allclose(steps, steps[0])
    for number in range(1, len(edges)):
        inside = (entropy >= edges[number - 1] * (1 - 1e-9)) & (entropy < edges[number] * (1 + 1e-9))
        assert found[number] <= inside.sum()


@given(ENTROPIES)
def test_the_words_say_what_the_numbers_are(values: list[float]) -> None:
    words = in_words(numpy.array(values), 3)
    share = 100 * sum(value < 0.01 for value in values) / len(values)
    assert f"{share:.1f} % are below 0.01 nats" in words
    assert f"{len(values):,} tokens of 3 trajectories" in words


def test_the_80th_percentile_is_stated(tmp_path) -> None:
    trace = trace_of_step(1, tokens=10)
    trace["entropy"] = [0.0, 0.0, 1e-5, 1e-3, 0.02, 0.05, 0.1, 0.2, 1.5, 2.0]
    write_json_lines(tmp_path / "metrics.jsonl", metrics_of_run(2))
    write_json_lines(tmp_path / "traces" / "step-000001.jsonl", [trace])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "40.0 % are below 0.01 nats, and the 80th percentile is 0.46 nats." in page
    assert "&lt; 0.0001" in page
