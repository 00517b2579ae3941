"""The Triton kernels give the sums and the gradient of a float64 softmax over a tile, for every dtype, width and layout.

Without a GPU they run in Triton's interpreter, on small blocks; with one they are compiled, tuned and run there.
"""

import math
import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Triton decides when it is imported whether its functions are interpreted, and megatron-core imports it if it can.
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(
            "no GPU, and Triton is already imported without its interpreter: set TRITON_INTERPRET=1 for the whole run, "
            "or run this file alone",
            allow_module_level=True,
        )
    os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton", reason="Triton is not installed")

from megatron_fork.vocab_parallel import head as head_module  # noqa: E402
from megatron_fork.vocab_parallel import kept, triton_tile  # noqa: E402
from megatron_fork.vocab_parallel.head import Coefficients, Head  # noqa: E402
from megatron_fork.vocab_parallel.shard import VocabularyShard, statistics_of  # noqa: E402

# The interpreter computes with numpy, which warns of the infinities and NaNs that are meant here.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

SPLIT = triton_tile.SPLIT_COLUMNS
# Relative error of a gradient from rounding it to its type; the interpreter cuts a float32 off to bfloat16.
ROUNDING = {torch.float32: 4e-6, torch.float16: 2**-10, torch.bfloat16: 2**-8 if DEVICE == "cuda" else 2**-7}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(tokens: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 3.0):
    """(logits, target columns, whether each is held)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(tokens, columns, generator=generator, dtype=torch.float64)).to(dtype)
    column = torch.randint(0, columns, (tokens,), generator=generator)
    return logits.to(DEVICE), column.to(DEVICE), (torch.arange(tokens) % 3 != 1).to(DEVICE)


def apart(tile_tv: Tensor, gap: int, between: float = 7.0) -> Tensor:
    """The same tile with `gap` columns of a number between its rows."""
    wide = torch.full((tile_tv.shape[0], tile_tv.shape[1] + gap), between, dtype=tile_tv.dtype, device=tile_tv.device)
    wide[:, : tile_tv.shape[1]] = tile_tv
    return wide[:, : tile_tv.shape[1]]


def sums(logits: Tensor, column: Tensor, held: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    """`[4, tokens]` in float64, by the definitions."""
    x = logits.double() * inverse_temperature
    maximum = x.amax(1)
    exponent = x - maximum.masked_fill(maximum == -math.inf, 0.0)[:, None]
    weight = exponent.exp()
    weighted = torch.where(exponent == -math.inf, 0.0, weight * exponent).sum(1)
    target = torch.where(held, x.gather(1, column[:, None])[:, 0], 0.0)
    return torch.stack([maximum, weight.sum(1), weighted, target])


def check_sweep(logits: Tensor, column: Tensor, held: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    before = logits.clone()
    found = triton_tile.sweep(logits, column, held, inverse_temperature)
    assert found.shape == (4, logits.shape[0])
    assert found.dtype == torch.float32
    assert torch.equal(logits, before)
    torch.testing.assert_close(found.double(), sums(logits, column, held, inverse_temperature), rtol=4e-6, atol=1e-6)
    return found


class Backward:
    """The gradient of a tile that holds the first columns of a vocabulary, others having the rest, by autograd in float64."""

    def __init__(
        self, logits: Tensor, column: Tensor, held: Tensor, inverse_temperature: float, of_entropy: bool
    ) -> None:
        tokens, columns = logits.shape
        elsewhere, _, _ = make(tokens, 50, torch.float64, seed=1)
        leaf = logits.double().requires_grad_()
        log_p = (torch.cat([leaf, elsewhere], 1) * inverse_temperature).log_softmax(1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(1)
        logprob = log_p.gather(1, torch.where(held, column, columns)[:, None])[:, 0]
        generator = torch.Generator().manual_seed(2)
        upstream = torch.randn(2, tokens, generator=generator).to(DEVICE)
        (upstream[0] * logprob + (upstream[1] * entropy if of_entropy else 0.0)).sum().backward()
        assert leaf.grad is not None
        self.expected = leaf.grad
        x = torch.cat([leaf, elsewhere], 1).detach() * inverse_temperature
        self.given = (
            column,
            held,
            x.logsumexp(1).float(),
            entropy.detach().float(),
            upstream[0],
            upstream[1] if of_entropy else None,
            inverse_temperature,
        )

    def check(self, found: Tensor, absolute: float = 2e-6) -> None:
        absolute += 2.0**-24 if found.dtype == torch.float16 else 0.0
        torch.testing.assert_close(found.double(), self.expected, rtol=ROUNDING[found.dtype], atol=absolute)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2 * SPLIT + 77])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sums(dtype: torch.dtype, columns: int, temperature: float) -> None:
    check_sweep(*make(3, columns, dtype), 1 / temperature)


@pytest.mark.parametrize("columns", [SPLIT // 2, SPLIT, SPLIT + 1, 5 * SPLIT // 2])
def test_sums_at_the_edges_of_blocks_and_splits(columns: int) -> None:
    logits, _, held = make(2, columns)
    for column in (0, columns - 1):
        check_sweep(logits, torch.full_like(held, column, dtype=torch.long), torch.ones_like(held))


@pytest.mark.parametrize("of_entropy", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient(dtype: torch.dtype, temperature: float, of_entropy: bool) -> None:
    logits, column, held = make(3, SPLIT + 77, dtype)
    case = Backward(logits, column, held, 1 / temperature, of_entropy)
    before = logits.clone()
    for out_dtype in (torch.float32, torch.bfloat16):
        out = torch.full_like(logits, math.nan, dtype=out_dtype)
        assert triton_tile.logits_gradient(logits, *case.given, out) is out
        assert torch.equal(logits, before)
        case.check(out)
    assert triton_tile.logits_gradient(logits, *case.given, logits) is logits
    case.check(logits)


@pytest.mark.parametrize("gap", [3, 4096])
def test_rows_apart(gap: int) -> None:
    """What lies between rows has no part in any result, and is not written.

    Bits are promised for one row stride. Where it is a multiple of 16 (a gap of 3 makes it so in a GPU's form of this test)
    threads load several neighbours at a time, and add up in another order than those of a tile without a gap.
    """
    logits, column, held = make(3, SPLIT + 77, torch.bfloat16)
    tile = apart(logits, gap)
    swept = check_sweep(tile, column, held)
    torch.testing.assert_close(check_sweep(logits, column, held), swept, rtol=2e-6, atol=1e-6)
    for rows in (slice(0, 1), slice(1, 3)):
        assert torch.equal(triton_tile.sweep(tile[rows], column[rows], held[rows], 1.0), swept[:, rows])
    for between in (math.nan, math.inf, -1e30):
        assert torch.equal(triton_tile.sweep(apart(logits, gap, between), column, held, 1.0), swept)
    case = Backward(logits, column, held, 1.0, of_entropy=True)
    given = apart(logits, gap, math.nan)
    for out in (apart(torch.zeros_like(logits, dtype=torch.float32), gap + 1), tile):
        gradient = triton_tile.logits_gradient(tile, *case.given, out).clone()
        case.check(gradient)
        assert torch.equal(triton_tile.logits_gradient(given, *case.given, given if out is tile else out), gradient)
        between = torch.as_strided(out, (2, gap), (out.stride(0), 1), out.shape[1])
        assert (between == 7.0).all()


@pytest.mark.parametrize("columns", [40, 5 * SPLIT + 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gradient_in_the_memory_of_its_logits(columns: int, dtype: torch.dtype) -> None:
    """Written from the left over logits that are done, it is bit for bit what it is in memory of its own."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(3, 8, generator=generator).to(DEVICE, dtype)
    weight = torch.randn(columns, 8, generator=generator).to(DEVICE, dtype)
    targets = torch.tensor([columns - 1, 0, columns // 2], device=DEVICE)
    shard = VocabularyShard.of(columns, None, None)
    head = Head(weight, shard, 1.0, triton_tile, on_gpu=True, product_dtype=dtype)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if DEVICE == "cpu":
            monkeypatch.setattr(head_module, "_GPU_COLUMNS", 2 * SPLIT)
            monkeypatch.setattr(kept, "_FIRST_COLUMNS", 64)
        made = kept.KeptLogits(head, hidden, targets)
        log_z, _, entropy = statistics_of(made.partial_4c)
        coefficients = Coefficients(log_z, entropy, torch.arange(1.0, 4.0, device=DEVICE), entropy.cos())
        expected = []
        for tile, logits in zip(made.tiles, made._logits, strict=True):
            gradient = torch.empty(logits.shape, dtype=dtype, device=DEVICE)
            expected.append(head.gradient(logits.clone(), targets, tile, coefficients, gradient))
        assert len(expected) == (1 if columns == 40 else 3) or DEVICE == "cuda"
        for (_, gradient), alone in zip(made.gradients(coefficients), expected, strict=True):
            assert torch.equal(gradient, alone)


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


@pytest.mark.parametrize(("tokens", "columns"), [(3, 0), (0, 5), (0, 0)])
def test_no_columns_and_no_tokens(tokens: int, columns: int) -> None:
    logits = torch.zeros(tokens, columns, dtype=torch.bfloat16, device=DEVICE)
    column = torch.zeros(tokens, dtype=torch.long, device=DEVICE)
    numbers = torch.zeros(tokens, device=DEVICE)
    found = triton_tile.sweep(logits, column, column > 0, 1.0)
    assert found.dtype == torch.float32
    assert found.tolist() == [[-math.inf] * tokens, *[[0.0] * tokens] * 3]
    given = (column, column > 0, numbers, numbers, numbers, numbers, 1.0)
    assert triton_tile.logits_gradient(logits, *given, logits) is logits


def test_upstream_of_any_stride_and_dtype() -> None:
    logits, column, held = make(3, 90)
    case = Backward(logits, column, held, 1.0, of_entropy=True)
    column, held, log_z, entropy, *_ = case.given
    one = torch.ones((), device=DEVICE)
    expected = triton_tile.logits_gradient(
        logits, column, held, log_z, entropy, one.repeat(3), one.repeat(3), 1.0, torch.empty_like(logits)
    )
    found = triton_tile.logits_gradient(
        logits, column, held, log_z, entropy, one.expand(3), one.double().expand(3), 1.0, torch.empty_like(logits)
    )
    assert torch.equal(found, expected)


def test_a_token_has_the_same_bits_in_any_chunk() -> None:
    logits, column, held = make(5, SPLIT + 77, torch.bfloat16)
    whole = triton_tile.sweep(logits, column, held, 1 / 0.7)
    for part in (slice(0, 1), slice(1, 5)):
        assert torch.equal(triton_tile.sweep(logits[part], column[part], held[part], 1 / 0.7), whole[:, part])


def test_tuning_in_place_starts_every_run_from_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = triton_tile._gradient_kernel
    runs = []

    def bench(run, quantiles) -> list[float]:
        for _ in range(2):
            run()
            runs.append(run)
        return [float(len(runs))] * len(quantiles)

    configurations = [triton.Config({"BLOCK": block}) for block in (64, 128)]
    tuned = triton.autotune(configurations, kernel.keys, restore_value=kernel.restore_value, do_bench=bench)(kernel.fn)
    monkeypatch.setattr(triton_tile, "_gradient_kernel", tuned)
    logits, column, held = make(2, 150)
    case = Backward(logits, column, held, 1.0, of_entropy=True)
    case.check(triton_tile.logits_gradient(logits, *case.given, logits))
    assert len(runs) == 4


@given(
    tokens=st.integers(1, 3),
    columns=st.integers(1, 3 * SPLIT) if DEVICE == "cpu" else st.integers(1, 200_000),
    dtype=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from([None, *DTYPES]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    scale=st.sampled_from([0.1, 3.0, 12.0]),
    missing=st.sampled_from([0.0, 0.5, 0.99]),
    gap=st.integers(0, 20),
    of_entropy=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15, deadline=None)
def test_any_tile(
    tokens: int,
    columns: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    temperature: float,
    scale: float,
    missing: float,
    gap: int,
    of_entropy: bool,
    seed: int,
) -> None:
    logits, column, held = make(tokens, columns, dtype, seed, scale)
    absent = torch.rand(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(DEVICE) < missing
    logits = apart(logits.masked_fill(absent.scatter(1, column[:, None], False), -math.inf), gap)
    check_sweep(logits, column, held, 1 / temperature)
    case = Backward(logits, column, held, 1 / temperature, of_entropy)
    out = logits if out_dtype is None else torch.empty(tokens, columns, dtype=out_dtype, device=DEVICE)
    # log Z and the exponents grow with the logits, and so does the resolution that p has of them.
    case.check(triton_tile.logits_gradient(logits, *case.given, out), absolute=2e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter would write 4 GB of memory to take a copy")
def test_rows_more_than_2_to_the_31_logits_apart() -> None:
    logits, column, held = make(2, SPLIT + 5, torch.bfloat16)
    stride = 2**31 + 8
    far = torch.empty(stride + SPLIT + 5, dtype=torch.bfloat16, device=DEVICE).as_strided(logits.shape, (stride, 1))
    far.copy_(logits)
    check_sweep(far, column, held)
    case = Backward(logits, column, held, 1.0, of_entropy=True)
    case.check(triton_tile.logits_gradient(far, *case.given, far))
