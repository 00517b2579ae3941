"""What an engine of the user's own raises or answers amiss is one line with its name, before anything is trained on it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from support.echo_engine import Echo

from megatron_fork.errors import ConfigError, ExtensionError
from megatron_fork.experience import VersionSpan
from megatron_fork.rollout import Completion, EngineKind, Request, RolloutConfig, check_engine, engine_kind
from megatron_fork.rollout.outside import OutsideEngine

PROBE = 3
KIND = EngineKind(Echo)


def twisted(**twists: Callable[[Completion], object]) -> type[Echo]:
    """An echo with something wrong in its answers."""

    class Twisted(Echo):
        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            for completion in super().generate(requests):
                yield replace(completion, **{name: make(completion) for name, make in twists.items()})

    return Twisted


class Failing(Echo):
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from super().generate(requests[:1])
        raise ValueError("no\nmore")


class Leaving(Echo):
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        raise SystemExit(0)


class Few(Echo):
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from super().generate(requests[1:])


class Twice(Echo):
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from super().generate([*requests, *requests])


class Mapped(Echo):
    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from (vars(each) for each in super().generate(requests))  # type: ignore[misc]


WRONG_ANSWERS = {
    "failed: ValueError no more": Failing,
    "failed: SystemExit 0": Leaving,
    "unanswered": Few,
    "or a second time": Twice,
    "answers with dict": Mapped,
    "which is not asked for": twisted(number=lambda each: each.number + 100),
    "with 0 tokens of at most 9": twisted(tokens=lambda each: [], logprob=lambda each: []),
    "tokens of at most 9": twisted(tokens=lambda each: [*each.tokens] * 9),
    "the token 1000 of a vocabulary of 1000": twisted(tokens=lambda each: [1000] * 3),
    "the token -1 of": twisted(tokens=lambda each: [-1] * 3),
    "the token '5' of": twisted(tokens=lambda each: ["5"] * 3),
    "whose log-probs are 2, or": twisted(logprob=lambda each: each.logprob[1:]),
    "whose log-probs are 3, or not finite": twisted(logprob=lambda each: [float("nan")] * 3),
    "its versions do not cover": twisted(versions=lambda each: (VersionSpan(0, 0, 2),)),
    "versions do not cover: ()": twisted(versions=lambda each: ()),
}


@pytest.mark.parametrize("told", WRONG_ANSWERS)
@pytest.mark.parametrize("is_stream", [False, True], ids=["in rounds", "as a stream"])
def test_an_answer_that_does_not_fit_is_told_before_it_is_trained_on(told: str, is_stream: bool) -> None:
    """One that answers too little or too much would be drawn from for ever, or pass for a run that was stopped."""
    engine = OutsideEngine(WRONG_ANSWERS[told](), "my:engine", vocabulary=1000)
    engine.update_weights([], 0)
    asked = [Request(number, (5, 6, number), 0, 1.0, 9) for number in range(3)]
    with pytest.raises(ExtensionError, match=f"^rollout\\.engine=my:engine .*{re.escape(told)}") as caught:
        if is_stream:
            engine.submit(asked)
            arriving = engine.completions()
            while next(arriving) is not None:
                pass
        else:
            list(engine.generate(asked))
    assert caught.value.hint and caught.value.is_of_one_rank


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (EngineKind("no_such_module_here:f"), "has build=no_such_module_here:f, which is no function"),
        (EngineKind(3), "has build=3, which is no function"),
        (
            EngineKind(Echo, check="test_outside_engine:PROBE"),
            "has check=test_outside_engine:PROBE, which is no function",
        ),
        (EngineKind(Echo, ranks_per_engine=lambda config: 0), "has ranks_per_engine=0"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_before_the_start(
    kind: EngineKind, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "KIND", kind)
    engine_kind.cache_clear()
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_engine(RolloutConfig(engine=f"{__name__}:KIND"), ranks=1)
    engine_kind.cache_clear()
