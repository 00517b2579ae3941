"""What is far away, absent, infinite or no number in a tile: the Triton kernels do with it as the float64 softmax does."""

import math

import pytest
import torch
from support.triton_tiles import DEVICE, DTYPES, SPLIT, Backward, check_sweep, make

from megatron_fork.vocab_parallel import triton_tile

# The interpreter computes with numpy, which warns of the infinities and NaNs that are meant here.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def test_columns_at_minus_infinity_do_not_exist() -> None:
    logits, column, held = make(4, 3 * SPLIT)
    column.clamp_(max=SPLIT // 2 - 1)
    logits[0, SPLIT // 2 :] = -math.inf  # blocks after the first, and whole splits
    logits[1, : 2 * SPLIT + 5] = -math.inf  # everything before the last split
    logits[2, ::2] = -math.inf
    column[2], held[1] = 1, False
    check_sweep(logits, column, held, 1 / 0.7)
    case = Backward(logits, column, held, 1 / 0.7, of_entropy=True)
    gradient = triton_tile.logits_gradient(logits, *case.given, torch.empty_like(logits))
    case.check(gradient)
    assert not gradient[logits == -math.inf].any()


@pytest.mark.parametrize("columns", [5, 2 * SPLIT + 1])
def test_a_row_wholly_at_minus_infinity_adds_nothing(columns: int) -> None:
    logits, column, _ = make(2, columns)
    logits[0] = -math.inf
    found = check_sweep(logits, column, torch.zeros(2, dtype=torch.bool, device=DEVICE))
    assert found[:, 0].tolist() == [-math.inf, 0.0, 0.0, 0.0]


def test_masked_with_the_lowest_number_of_the_type() -> None:
    logits, column, held = make(2, SPLIT + 1)
    logits[:, 3:] = torch.finfo(torch.float32).min  # over the temperature, this is -inf
    column.zero_()
    check_sweep(logits, column, held, 1 / 0.7)
    case = Backward(logits, column, held, 1 / 0.7, of_entropy=True)
    case.check(triton_tile.logits_gradient(logits, *case.given, logits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_far_logits(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.full((3, SPLIT + 3), -1e4, dtype=dtype, device=DEVICE)
    logits[0, SPLIT + 1] = 1e4
    logits[1, 0] = logits[1, SPLIT] = 1e4
    column, held = torch.tensor([SPLIT + 1, 0, 2], device=DEVICE), torch.ones(3, dtype=torch.bool, device=DEVICE)
    found = check_sweep(logits, column, held, 1 / temperature)
    assert torch.equal(found[0], found[3])
    assert found[1].tolist() == [1.0, 2.0, SPLIT + 3.0]
    assert found[2].tolist() == [0.0, 0.0, 0.0]
    case = Backward(logits, column, held, 1 / temperature, of_entropy=True)
    gradient = triton_tile.logits_gradient(logits, *case.given, torch.empty_like(logits, dtype=torch.float32))
    # log Z is float32 here, its resolution at 1e4 / 0.7 2^-10: so much may p be off, and so a gradient of order 1.
    torch.testing.assert_close(gradient.double(), case.expected, rtol=2**-9, atol=2**-9)
    if temperature == 1.0:
        # The first row's log Z is 1e4 without rounding.
        assert not gradient[0].any()


def test_one_hot_and_uniform_rows() -> None:
    logits = torch.full((2, SPLIT + 9), -200.0, device=DEVICE)
    logits[0, 17], logits[1] = 0.0, 3.25
    column, held = torch.tensor([17, SPLIT + 8], device=DEVICE), torch.ones(2, dtype=torch.bool, device=DEVICE)
    maximum, total, weighted, target = check_sweep(logits, column, held)
    assert (target - maximum - total.log()).tolist() == pytest.approx([0.0, -math.log(SPLIT + 9)], rel=1e-6, abs=0.0)
    assert (total.log() - weighted / total).tolist() == pytest.approx([0.0, math.log(SPLIT + 9)], rel=1e-6, abs=0.0)


@pytest.mark.parametrize("place", [0, SPLIT // 2 + 3, SPLIT + 1, 2 * SPLIT + 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_logit_shows(place: int, bad: float) -> None:
    logits, column, held = make(2, 2 * SPLIT + 5)
    logits[0, place] = bad
    found = triton_tile.sweep(logits, column, held, 1.0)
    assert found[:2, 0].isnan().any()
    assert found[:, 1].isfinite().all()


@pytest.mark.parametrize("columns", [3, SPLIT + 1])
def test_nothing_but_nan_shows(columns: int) -> None:
    logits, column, held = make(1, columns)
    assert triton_tile.sweep(logits.fill_(math.nan), column, held, 1.0)[:2].isnan().any()


def test_a_nan_shows_in_the_gradient() -> None:
    logits, column, held = make(2, 40)
    case = Backward(logits, column, held, 1.0, of_entropy=True)
    logits[0, 7] = math.nan
    assert triton_tile.logits_gradient(logits, *case.given, logits).isnan().nonzero().tolist() == [[0, 7]]
