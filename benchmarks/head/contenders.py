"""The contenders' interface, the floor that none can pass, and this package."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from head.problem import RESULTS, Problem

Statistics = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, Tensor]


class Contender:
    """One way to do the work. `key` is its name on the command line, `label` in the table."""

    key: str
    label: str
    # Whether the caller hands it the rows that count; then it has nothing to show where all tokens count.
    handed_rows = False
    # Whether it runs without being named.
    by_default = True

    def prepare(self, problem: Any) -> None:
        """Whatever is chosen once for a shape, outside of the measurement."""

    def notes(self) -> dict[str, str]:
        """What `prepare` chose, for the record."""
        return {}

    def phases(self, problem: Any) -> dict[str, Callable[[], Any]]:
        """The parts of the work, to be measured one by one; what they consume is made here."""
        raise NotImplementedError

    def results(self, problem: Any) -> dict[str, Tensor]:
        """What is compared with the reference, under the reference's names; nothing for the floor."""
        raise NotImplementedError


class HeadContender(Contender):
    """From hidden states and weight: the statistics of every token, then the gradients for those that count."""

    def statistics(self, problem: Problem) -> Statistics:
        """Log-prob and entropy of every token; called without gradients."""
        raise NotImplementedError

    def update(self, problem: Problem) -> Gradients:
        """Gradients of `sum(coefficient * logprob)`."""
        raise NotImplementedError

    def phases(self, problem: Problem) -> dict[str, Callable[[], Any]]:
        def statistics() -> Statistics:
            with torch.no_grad():
                return self.statistics(problem)

        return {"statistics": statistics, "update": lambda: self.update(problem)}

    def results(self, problem: Problem) -> dict[str, Tensor]:
        phases = self.phases(problem)
        return dict(zip(RESULTS, (*phases["statistics"](), *phases["update"]()), strict=True))


@dataclass(frozen=True)
class Tiling:
    """Logits exist `rows x columns` at a time; `upcast` multiplies bf16 in float32, faster on a CPU without bf16 units."""

    rows: int
    columns: int
    upcast: bool

    def tiles(self, rows: int, columns: int) -> Iterator[tuple[slice, list[slice]]]:
        """Column tiles, and the row tiles in each: a tile of the weight is read once and stays in cache."""
        row_tiles = [slice(start, min(start + self.rows, rows)) for start in range(0, rows, self.rows)]
        for start in range(0, columns, self.columns):
            yield slice(start, min(start + self.columns, columns)), row_tiles

    def product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if self.upcast else dtype


class Floor(HeadContender):
    """The matrix products alone: one for all tokens, three for the rows that count. Its numbers mean nothing."""

    key, label = "floor", "floor: matrix products alone"
    _sample_columns = 8192

    def __init__(self) -> None:
        self._tilings: dict[str, Tiling] = {}

    def prepare(self, problem: Problem) -> None:
        """Try the tilings on a piece of the vocabulary and keep the fastest of each phase."""
        sample_vd = problem.weight_vd[: 4 * self._sample_columns if problem.weight_vd.is_cuda else self._sample_columns]
        rows_rd = problem.only_rows()[0]
        self._tilings = {
            "statistics": _fastest(lambda tiling: _logits(problem.hidden_td, sample_vd, tiling), problem.hidden_td),
            "update": _fastest(lambda tiling: _three_products(rows_rd, sample_vd, tiling), problem.hidden_td),
        }

    def statistics(self, problem: Problem) -> Statistics:
        tiling = self._tilings.get("statistics", Tiling(512, 2048, upcast=False))
        logit_t = _logits(problem.hidden_td, problem.weight_vd, tiling)
        return logit_t, logit_t

    def update(self, problem: Problem) -> Gradients:
        tiling = self._tilings.get("update", Tiling(512, 2048, upcast=False))
        return _three_products(problem.only_rows()[0], problem.weight_vd, tiling)

    def results(self, problem: Problem) -> dict[str, Tensor]:
        return {}

    def notes(self) -> dict[str, str]:
        return {f"{phase} tiling": str(tiling) for phase, tiling in self._tilings.items()}


def _candidates(hidden_td: Tensor) -> list[Tiling]:
    row_counts, columns = (
        ((1024, 4096), (8192, 32_768)) if hidden_td.is_cuda else ((256, 512, 2048), (1024, 2048, 4096, 8192))
    )
    rows = sorted({min(count, len(hidden_td)) for count in row_counts})
    upcasts = (False, True) if hidden_td.dtype == torch.bfloat16 and not hidden_td.is_cuda else (False,)
    return [Tiling(*sizes) for sizes in itertools.product(rows, columns, upcasts)]


def _fastest(work: Callable[[Tiling], Any], hidden_td: Tensor) -> Tiling:
    """The tiling with the least seconds of two tries; in turns, so that no candidate has the busy moments alone."""
    tilings = _candidates(hidden_td)
    seconds = dict.fromkeys(tilings, float("inf"))
    for tiling in tilings * 2:
        started = time.perf_counter()
        work(tiling)
        if hidden_td.is_cuda:
            torch.cuda.synchronize()
        seconds[tiling] = min(seconds[tiling], time.perf_counter() - started)
    return min(seconds, key=seconds.__getitem__)


def _logits(hidden_td: Tensor, weight_vd: Tensor, tiling: Tiling) -> Tensor:
    wide_td = hidden_td.to(tiling.product_dtype(hidden_td.dtype))
    logits = wide_td.new_empty(tiling.rows * tiling.columns)
    wide_vd = wide_td.new_empty(tiling.columns, wide_td.shape[1]) if tiling.upcast else None
    for columns, row_tiles in tiling.tiles(len(wide_td), len(weight_vd)):
        tile_vd = _tile(weight_vd[columns], wide_vd)
        for rows in row_tiles:
            _product(wide_td[rows], tile_vd.T, logits)
    return logits


def _three_products(hidden_rd: Tensor, weight_vd: Tensor, tiling: Tiling) -> Gradients:
    wide_rd = hidden_rd.to(tiling.product_dtype(hidden_rd.dtype))
    logits = wide_rd.new_empty(tiling.rows * tiling.columns)
    wide_vd, sums_vd = wide_rd.new_empty(2, tiling.columns, wide_rd.shape[1]) if tiling.upcast else (None, None)
    hidden_gradient_rd = torch.empty_like(wide_rd)
    weight_gradient_vd = torch.empty_like(weight_vd)
    for columns, row_tiles in tiling.tiles(len(wide_rd), len(weight_vd)):
        tile_vd = _tile(weight_vd[columns], wide_vd)
        sum_vd = weight_gradient_vd[columns] if sums_vd is None else sums_vd[: len(tile_vd)]
        for index, rows in enumerate(row_tiles):
            logits_tv = _product(wide_rd[rows], tile_vd.T, logits)
            # The first product of a sum writes, so that nothing has to be filled with zeros.
            hidden_sum_td = hidden_gradient_rd[rows]
            torch.addmm(hidden_sum_td, logits_tv, tile_vd, beta=int(columns.start > 0), out=hidden_sum_td)
            torch.addmm(sum_vd, logits_tv.T, wide_rd[rows], beta=int(index > 0), out=sum_vd)
        if sums_vd is not None:
            weight_gradient_vd[columns] = sum_vd
    return hidden_gradient_rd.to(hidden_rd.dtype), weight_gradient_vd


def _tile(weight_vd: Tensor, wide_vd: Tensor | None) -> Tensor:
    """The tile as it is, or its float32 copy in memory that has been touched before: fresh pages would cost more."""
    return weight_vd if wide_vd is None else wide_vd[: len(weight_vd)].copy_(weight_vd)


def _product(left: Tensor, right: Tensor, buffer: Tensor) -> Tensor:
    result = buffer[: left.shape[0] * right.shape[1]].view(left.shape[0], right.shape[1])
    return torch.mm(left, right, out=result)


class Ours(HeadContender):
    """`lm_head_statistics`, and `lm_head_loss` that forms the gradients while the logits are there."""

    key, label = "ours", "megatron-fork"
    settings: ClassVar[dict[str, Any]] = {}

    @property
    def config(self) -> Any:
        from megatron_fork.vocab_parallel import VocabParallelConfig

        return VocabParallelConfig(**self.settings)

    def statistics(self, problem: Problem) -> Statistics:
        from megatron_fork.vocab_parallel import lm_head_statistics

        statistics = lm_head_statistics(
            problem.hidden_td, problem.weight_vd, problem.targets_t, group=problem.group, config=self.config
        )
        return statistics.logprob, statistics.entropy

    def update(self, problem: Problem) -> Gradients:
        from megatron_fork.vocab_parallel import TokenStatistics, lm_head_loss

        coefficient_r = problem.coefficient_t[problem.rows_r]

        def weighted_sum(statistics: TokenStatistics, place: slice) -> tuple[Tensor, dict[str, Tensor]]:
            return (coefficient_r[place] * statistics.logprob).sum(), {}

        def loss(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
            rows_r = None if problem.all_count else problem.rows_r
            return lm_head_loss(
                hidden_td,
                weight_vd,
                problem.targets_t,
                weighted_sum,
                rows=rows_r,
                group=problem.group,
                config=self.config,
            )[0]

        return problem.gradients(loss)


class OursOneStream(Ours):
    """Without the second stream, in which a tile is swept while the next is computed: what that gains, on a GPU."""

    key, label, by_default = "ours-one-stream", "megatron-fork, one stream", False
    settings: ClassVar[dict[str, Any]] = {"second_stream": False}


class OursFp32Head(Ours):
    """With float32 products: TensorFloat-32 on a GPU."""

    key, label, by_default = "ours-fp32-head", "megatron-fork, fp32 head", False
    settings: ClassVar[dict[str, Any]] = {"fp32_head": True}


class OursRecomputed(Ours):
    """`lm_head_statistics` under autograd: the logits are formed again in backward, one product more."""

    key, label = "ours-recomputed", "megatron-fork, recomputed"

    def update(self, problem: Problem) -> Gradients:
        from megatron_fork.vocab_parallel import lm_head_statistics

        def loss(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
            rows_r = None if problem.all_count else problem.rows_r
            statistics = lm_head_statistics(
                hidden_td, weight_vd, problem.targets_t, rows=rows_r, group=problem.group, config=self.config
            )
            return (problem.coefficient_t[problem.rows_r] * statistics.logprob).sum()

        return problem.gradients(loss)


def own() -> list[HeadContender]:
    """The floor and this package, in the order of the table."""
    return [Floor(), Ours(), OursRecomputed(), OursOneStream(), OursFp32Head()]
