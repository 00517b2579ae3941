"""The responses that the embedded engine draws at a time, one token of each per step; others may join at any step.

Requests with the same prompt read it once. A prompt's last token is read by the first step, as each drawn token is by the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megatron_fork.experience import KeptTokens, VersionSpan, logprob_array, token_array
from megatron_fork.rollout.engine import Completion, PartialResponse, Request
from megatron_fork.rollout.in_process.cache import KeyValueCache
from megatron_fork.rollout.in_process.recorded_experts import RecordedExperts
from megatron_fork.rollout.in_process.sampler import Sampler

# Prompt tokens that are read in one pass, with padding; a longer prompt is read alone.
_READ_TOKENS = 16384


class Batch:
    """Requests in progress: each has a place (`_p`) in the batch until it ends, and a row (`_r`) of what was drawn for it."""

    def __init__(
        self, model: PreTrainedModel, *, stop_tokens: Sequence[int], pad_token: int, records_experts: bool
    ) -> None:
        self.model = model
        self.stop_tokens = stop_tokens
        self.pad_token = pad_token
        self.device = model.device
        self.cache = KeyValueCache(self.device)
        config = model.config
        self._experts = (
            RecordedExperts(layers=config.num_hidden_layers, topk=config.num_experts_per_tok)
            if records_experts
            else None
        )
        self._requests: list[Request] = []
        self._sets: list[KeptTokens | None] = []
        self._sampler = Sampler([], stop_tokens, self.device)
        self._row_p = self._count_p = self._limit_p = self._last_p = self._whole([])
        self._token_rt = torch.zeros(0, 0, dtype=torch.long, device=self.device)
        self._uniform_rt = self._logprob_rt = torch.zeros(0, 0, device=self.device)

    def __len__(self) -> int:
        return len(self._row_p)

    @torch.no_grad()
    def add(self, requests: Sequence[Request]) -> None:
        """Read the prompts of `requests`; their responses begin with the next step."""
        self._forget_ended()
        self._requests += requests
        self._sets += [request.begun.kept_copy() if request.reports_kept else None for request in requests]
        self._sampler = Sampler(self._requests, self.stop_tokens, self.device)
        limits = [request.max_tokens - len(request.begun.tokens) for request in requests]
        fresh = torch.zeros(len(requests), max(limits), device=self.device)
        self._token_rt = _stacked(self._token_rt, fresh.long())
        self._logprob_rt = _stacked(self._logprob_rt, fresh)
        self._uniform_rt = _stacked(self._uniform_rt, _uniform(requests, fresh))
        self._row_p = self._whole(range(len(self._requests)))
        self._count_p = torch.cat([self._count_p, self._whole([0] * len(requests))])
        self._limit_p = torch.cat([self._limit_p, self._whole(limits)])
        self._last_p = torch.cat([self._last_p, self._whole([_prompt(request)[-1] for request in requests])])
        for part in _parts(requests):
            self._read(part)

    def _forget_ended(self) -> None:
        rows = self._row_p.tolist()
        self._requests = [self._requests[row] for row in rows]
        self._sets = [self._sets[row] for row in rows]
        self._token_rt, self._logprob_rt = self._token_rt[self._row_p], self._logprob_rt[self._row_p]
        self._uniform_rt = self._uniform_rt[self._row_p]
        if self._experts is not None:
            self._experts.keep(rows)

    def _read(self, requests: Sequence[Request]) -> None:
        """Add the prompts of `requests`, without their last tokens, to the cache."""
        prompts = [_prompt(request)[:-1] for request in requests]
        place_of = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        row_of = [place_of[prompt] for prompt in prompts]
        longest = max(map(len, prompts))
        read, scores = None, tuple[Tensor, ...]()
        if longest:
            read = DynamicCache(config=self.model.config)
            padded = [[*prompt, *[self.pad_token] * (longest - len(prompt))] for prompt in place_of]
            _, scores = self._forward(self._whole(padded), past_key_values=read)
        ceiling = max(len(request.tokens) + request.max_tokens for request in requests)
        self.cache.add(read, row_of, [len(prompt) for prompt in prompts], ceiling=ceiling)
        if self._experts is not None:
            self._experts.add(row_of, [score.unflatten(0, (len(place_of), -1)) for score in scores], ceiling=ceiling)

    @torch.no_grad()
    def step(self, version: int) -> list[Completion]:
        """Draw a token of each response with weights of `version`; the responses that end with it leave the batch."""
        uniform_p = self._uniform_rt[self._row_p, self._count_p]
        chosen_p, logprob_p, kept = self._sampler.draw(self._logits(), self._row_p, uniform_p)
        self._token_rt[self._row_p, self._count_p] = chosen_p
        self._logprob_rt[self._row_p, self._count_p] = logprob_p
        if kept is not None:
            _add_sets(self._sets, self._row_p, kept)
        self._count_p = self._count_p + 1
        self._last_p = chosen_p
        stopped_p = self._sampler.stops(chosen_p)
        ended = (stopped_p | (self._count_p >= self._limit_p)).nonzero()[:, 0]
        places = ended.tolist()
        if not places:
            return []
        which = zip(self._row_p[ended].tolist(), self._count_p[ended].tolist(), stopped_p[ended].tolist(), strict=True)
        completions = [self._completion(row, count, version, stopped=stopped) for row, count, stopped in which]
        self._leave(places)
        return completions

    def _logits(self) -> Tensor:
        """Logits after the last token of each response, `[places, vocab]`."""
        position_p, visible = self.cache.begin_step()
        dtype = self.model.lm_head.weight.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill_(~visible, -torch.inf)
        hidden, scores = self._forward(
            self._last_p[:, None],
            attention_mask=mask[:, None, None],
            position_ids=position_p[:, None],
            past_key_values=self.cache,
        )
        if self._experts is not None:
            self._experts.add_step(self._row_p, position_p, scores)
        logits: Tensor = self.model.lm_head(hidden[:, -1])
        return logits

    def _forward(self, tokens: Tensor, **inputs: object) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Hidden states of `tokens`, and the routers' scores of each layer if experts are recorded."""
        if self._experts is not None:
            inputs["output_router_logits"] = True
        backbone = self.model.model(input_ids=tokens, use_cache=True, **inputs)
        return backbone.last_hidden_state, backbone.router_logits if self._experts is not None else ()

    def _leave(self, places: Sequence[int]) -> None:
        """Free `places`; the last responses of the batch move there."""
        order = _without(places, len(self))
        self.cache.keep(order)
        kept = self._whole(order)
        self._row_p, self._count_p = self._row_p[kept], self._count_p[kept]
        self._limit_p, self._last_p = self._limit_p[kept], self._last_p[kept]

    def _completion(self, row: int, count: int, version: int, *, stopped: bool) -> Completion:
        request = self._requests[row]
        drawn = self._drawn(row, count, version)
        experts = None
        if self._experts is not None:
            experts = self._experts.of(row, len(_prompt(request)) + count - 1)
        return Completion(
            number=request.number,
            tokens=drawn.tokens,
            logprob=drawn.logprob,
            finish_reason="stop" if stopped else "length",
            versions=drawn.versions,
            experts=experts,
            kept=drawn.kept,
        )

    def unfinished(self, version: int) -> list[Request]:
        """The requests that are in the batch, with what was drawn for them, the last of it with weights of `version`."""
        which = zip(self._row_p.tolist(), self._count_p.tolist(), strict=True)
        return [replace(self._requests[row], begun=self._drawn(row, count, version)) for row, count in which]

    def _drawn(self, row: int, count: int, version: int) -> PartialResponse:
        """The partial response of a row with its `count` new tokens appended."""
        begun = self._requests[row].begun
        start, versions = len(begun.tokens), begun.versions
        if count:
            end = start + count
            if versions and versions[-1].version == version:
                versions, start = versions[:-1], versions[-1].start
            versions = (*versions, VersionSpan(version, start, end))
        tokens, logprob = token_array(begun.tokens), logprob_array(begun.logprob)
        tokens.extend(self._token_rt[row, :count].tolist())
        logprob.extend(self._logprob_rt[row, :count].tolist())
        return PartialResponse(tokens, logprob, versions, self._sets[row])

    def _whole(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


def _prompt(request: Request) -> tuple[int, ...]:
    """What the model has read before it draws the next token."""
    return (*request.tokens, *request.begun.tokens)


def _parts(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """The requests in their order, as many at a time as may be read in one pass."""
    part: list[Request] = []
    longest, prompts = 0, set[tuple[int, ...]]()
    for request in requests:
        prompt = _prompt(request)
        longest, prompts = max(longest, len(prompt)), prompts | {prompt}
        if part and longest * len(prompts) > _READ_TOKENS:
            yield part
            part, longest, prompts = [], len(prompt), {prompt}
        part.append(request)
    yield part


def _uniform(requests: Sequence[Request], like_rt: Tensor) -> Tensor:
    """One uniform number for each token that may be drawn, each row from its request's own generator."""
    uniform_rt = torch.zeros(like_rt.shape)
    for row, request in enumerate(requests):
        drawn = torch.rand(request.max_tokens, generator=torch.Generator().manual_seed(request.seed))
        first = len(request.begun.tokens)
        uniform_rt[row, : request.max_tokens - first] = drawn[first:]
    return uniform_rt.to(like_rt.device)


def _stacked(above: Tensor, below: Tensor) -> Tensor:
    """Both one above the other, the narrower one filled with 0."""
    stacked = above.new_zeros(len(above) + len(below), max(above.shape[1], below.shape[1]))
    stacked[: len(above), : above.shape[1]] = above
    stacked[len(above) :, : below.shape[1]] = below
    return stacked


def _without(places: Sequence[int], count: int) -> list[int]:
    """For each place of the smaller batch the place of 0 .. `count` - 1 whose response it gets, as few others as can be."""
    free = set(places)
    left = count - len(free)
    moving = (place for place in range(left, count) if place not in free)
    return [next(moving) if place in free else place for place in range(left)]


def _add_sets(sets: Sequence[KeptTokens | None], rows: Tensor, kept_pv: Tensor) -> None:
    """Append what the next token of each of `rows`, one a row of `kept_pv`, was drawn from."""
    whole = kept_pv.all(1).tolist()
    parts = kept_pv.nonzero()[:, 1].cpu().split(kept_pv.sum(1).tolist())
    for place, row in enumerate(rows.tolist()):
        mine = sets[row]
        if mine is not None:
            mine.append([] if whole[place] else parts[place].tolist())
