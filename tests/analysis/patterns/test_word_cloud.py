"""Words of a cloud never lie over each other or outside of it, and heavier ones are larger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.analysis.patterns.word_cloud import HEIGHT, WIDTH, draw_cloud, fitting_scale, placed_words

WORDS = [("wait", 1.0), ("however", 0.9), ("thus", 0.7), ("since", 0.6), ("assume", 0.5), ("given", 0.2), ("so", 0.0)]


def apart(words: list[tuple[str, float]]) -> int:
    placed = placed_words(words)
    for number, each in enumerate(placed):
        left, bottom, right, top = each.box
        assert -WIDTH * 36 <= left < right <= WIDTH * 36 and -HEIGHT * 36 <= bottom < top <= HEIGHT * 36
        for other in placed[:number]:
            assert left >= other.box[2] or other.box[0] >= right or bottom >= other.box[3] or other.box[1] >= top
    return len(placed)


def test_all_of_a_few_words() -> None:
    assert apart(WORDS) == len(WORDS)
    sizes = [each.size for each in placed_words(WORDS)]
    assert fitting_scale(placed_words(WORDS)) > 1.0
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(34) and sizes[-1] == pytest.approx(7)


def test_short_words_do_not_read_as_one() -> None:
    placed = placed_words([("in", 1.0), ("it", 1.0), ("is", 1.0)])
    for number, each in enumerate(placed):
        for other in placed[:number]:
            same_line = each.box[1] < other.box[3] and other.box[1] < each.box[3]
            right, left = (each, other) if each.origin[0] > other.origin[0] else (other, each)
            ink_of_left = left.box[2] - 0.15 * left.size - 2.0
            assert not same_line or right.origin[0] - ink_of_left >= 0.25 * each.size


def test_few_words_fill_the_figure() -> None:
    """At least in one direction, and none is cut off."""
    figure = draw_cloud(WORDS, "blue")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    across = max(abs(edge / width - 0.5) for box in boxes for edge in (box.x0, box.x1))
    up = max(abs(edge / height - 0.5) for box in boxes for edge in (box.y0, box.y1))
    assert max(across, up) > 0.4


@given(st.lists(st.tuples(st.text("abcWX.,", min_size=1, max_size=30), st.floats(0, 1)), max_size=15))
@settings(max_examples=8)
def test_any_words(words: list[tuple[str, float]]) -> None:
    apart(sorted(words, key=lambda word: -word[1]))
