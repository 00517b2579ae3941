"""The Triton kernels give the sums and the gradient of a float64 softmax over a tile, for every dtype, width and layout.

Without a GPU they run in Triton's interpreter, on small blocks; with one they are compiled, tuned and run there.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.triton_tiles import DEVICE, DTYPES, SPLIT, Backward, apart, check_sweep, make, triton

from megatron_fork.vocab_parallel import head as head_module
from megatron_fork.vocab_parallel import kept, triton_tile
from megatron_fork.vocab_parallel.head import Coefficients, Head
from megatron_fork.vocab_parallel.shard import VocabularyShard, statistics_of

# The interpreter computes with numpy, which warns of the infinities and NaNs that are meant here.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


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
