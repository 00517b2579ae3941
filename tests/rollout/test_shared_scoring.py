"""Servers share sequences: while one is good each gets its scores, whatever the others do; without one, a line says why."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stand_in_engine import StandIn

from megatron_fork.errors import RolloutError
from megatron_fork.rollout import RemoteConfig, RolloutConfig, ScoringServers
from megatron_fork.rollout.servers import shared_scoring
from megatron_fork.rollout.servers.shared_scoring import SharedScoring
from megatron_fork.rollout.servers.vllm import VllmServer
from megatron_fork.rollout.servers.wire import ServerFault

QUICK = RemoteConfig(health_seconds=0.002, requests_per_server=3, attempts=3, patience_seconds=0.2)
MODEL, LABEL = "theirs", "default"


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_scoring, "_REST_SECONDS", 0.001)


def right(tokens: Sequence[int], first: int, label: str = LABEL) -> list[float]:
    """The scores under the weights of that label."""
    return [-float(token) - (0.0 if label == LABEL else 1000.0) for token in tokens[first:]]


@dataclass
class Script:
    """What a server does in turn: it answers, then fails for some questions of the kind, and so on; at the end it is `last`."""

    turns: list[tuple[int, str, int]]
    """(answers, fault, how often)."""
    last: str = "good"
    answered: Counter[tuple[int, ...]] = field(default_factory=Counter)


class Scripted(VllmServer):
    """A server that follows its script.

    `dead`: no route answers; `broken`: it scores nothing; `busy`; `refuses`; `silent`: it is late; `swapped`: it has other
    weights, and scores with them; `moved`: it serves another model, and scores with that, until it has been asked for its
    model: a change that is taken back before anybody asks cannot be seen.
    """

    def __init__(self, number: int, config: RemoteConfig, script: Script) -> None:
        super().__init__(f"http://server{number}:1", config, 1000)
        self.script = script
        self._turns = list(script.turns)
        self._answers = self._faults = 0

    def _now(self, *, scores: bool = False, names: bool = False) -> str:
        if not self._turns:
            return self.script.last
        answers, kind, often = self._turns[0]
        if self._answers < answers:
            self._answers += scores
            return "good"
        self._faults += kind != "moved" or names
        if self._faults >= often:
            self._turns.pop(0)
            self._answers = self._faults = 0
        return kind

    async def logprobs_of(self, tokens: Sequence[int], first: int) -> list[float]:
        now = self._now(scores=True)
        await asyncio.sleep(0)
        if now in ("dead", "broken"):
            raise ServerFault("no connection")
        if now == "busy":
            raise ServerFault("later", is_busy=True)
        if now == "refuses":
            raise ServerFault("too long", refused=True)
        if now == "silent":
            await asyncio.sleep(0.01)
            raise ServerFault("not answered in time")
        self.script.answered[tuple(tokens)] += 1
        return right(tokens, first, "another" if now in ("swapped", "moved") else LABEL)

    async def models(self) -> list[str]:
        now = self._now(names=True)
        if now == "dead":
            raise ServerFault("no connection")
        return ["another" if now == "moved" else MODEL]

    async def weight_label(self) -> str:
        now = self._now()
        if now == "dead":
            raise ServerFault("no connection")
        return "another" if now == "swapped" else LABEL


KINDS = ("dead", "broken", "busy", "refuses", "moved", "silent")
TURNS = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(KINDS), st.integers(1, 30)), max_size=4)
SCRIPTS = st.builds(Script, TURNS, st.sampled_from(("good", "dead", "broken", "refuses", "moved", "swapped")))
GOOD = Script([])


def scored(servers: Sequence[Scripted], sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[float]]:
    async def work() -> list[list[float]]:
        said: list[str] = []
        sharing = SharedScoring(servers, servers[0].config, MODEL, LABEL, said.append)
        try:
            found = await sharing.logprobs(sequences, firsts)
            assert len(asyncio.all_tasks()) == 1, "nothing goes on after it"
            return found
        finally:
            assert all(line.isprintable() for line in said)
            for server in servers:
                await server.close()

    return asyncio.run(work())


def sequences_of(count: int) -> tuple[list[list[int]], list[int]]:
    """Each is another; some have nothing to score."""
    sequences = [[number, number + 1, number + 2][: 1 + number % 3] for number in range(count)]
    return sequences, [1] * count


@given(st.lists(SCRIPTS, max_size=3), st.integers(0, 40), st.integers(0, 3))
@settings(deadline=None)
def test_one_good_server_is_enough(scripts: list[Script], count: int, place: int) -> None:
    scripts = [replace(each, answered=Counter()) for each in scripts]
    scripts.insert(min(place, len(scripts)), good := replace(GOOD, answered=Counter()))
    servers = [Scripted(number, QUICK, script) for number, script in enumerate(scripts)]
    sequences, firsts = sequences_of(count)
    assert scored(servers, sequences, firsts) == [
        right(each, first) for each, first in zip(sequences, firsts, strict=True)
    ]
    assert max(good.answered.values(), default=0) <= 1, "a server that does not fail is asked once"
    always_good = [each.answered for each in scripts if not each.turns and each.last == "good"]
    assert all(sum(each[key] for each in always_good) <= 1 for key in good.answered)


@given(st.integers(1, 40), st.integers(1, 20))
@settings(deadline=None, max_examples=25)
def test_a_server_that_falls_is_used_again_when_it_is_back(count: int, often: int) -> None:
    """Alone, with more attempts than faults: nothing is lost."""
    config = replace(QUICK, attempts=100, patience_seconds=60.0)
    script = Script([(count // 2, "dead", often)])
    sequences, firsts = sequences_of(count)
    found = scored([Scripted(0, config, script)], sequences, firsts)
    assert found == [right(each, first) for each, first in zip(sequences, firsts, strict=True)]


def test_scores_of_weights_that_the_server_did_not_name_do_not_count() -> None:
    """It gets others while it scores, and dies before anyone asks which."""
    config = replace(QUICK, health_seconds=0.05)
    hasty = Script([(4, "swapped", 4)], last="dead")
    slow = Script([(0, "busy", 20)])
    sequences, firsts = sequences_of(24)
    found = scored([Scripted(0, config, hasty), Scripted(1, config, slow)], sequences, firsts)
    assert found == [right(each, first) for each, first in zip(sequences, firsts, strict=True)]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("dead", "none is ready after 0 s: .*server0:1: .*no connection.*server1:1"),
        ("broken", "does not score a sequence of 2 tokens: no connection|none can be used: .*no connection"),
        ("refuses", "does not score a sequence of 2 tokens: too long"),
        ("moved", "none can be used: .*server0:1: it serves another, not theirs"),
        ("swapped", "none can be used: .*server0:1: it has the weights another, not default"),
    ],
)
def test_without_a_good_server_one_line_says_why(last: str, message: str) -> None:
    servers = [Scripted(number, QUICK, Script([(2, last, 1)], last)) for number in range(2)]
    with pytest.raises(RolloutError, match=message) as raised:
        scored(servers, *sequences_of(40))
    assert raised.value.message.isprintable() and raised.value.hint


def test_an_error_of_our_own_ends_it() -> None:
    class Wrong(Scripted):
        async def logprobs_of(self, tokens: Sequence[int], first: int) -> list[float]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scored([Wrong(0, QUICK, Script([]))], *sequences_of(9))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_that_is_gone_is_named_and_left_out(engine: str) -> None:
    """Over real connections: nothing listens at one address, and the other has no model that scores."""
    said: list[str] = []
    with closing(StandIn(engine)) as up:
        config = RolloutConfig(engine=engine, servers=["http://127.0.0.1:9", up.url])
        servers = ScoringServers(config, MODEL, 135, said.append)
        assert servers.logprobs([[5], []], [1, 0]) == [[], []]
    assert len(said) == 1 and said[0].startswith("http://127.0.0.1:9 does not answer"), said
    with pytest.raises(RolloutError, match=r"127.0.0.1:9.*; .*") as raised:
        ScoringServers(config, MODEL, 135).logprobs([[5, 6]], [1])
    assert raised.value.hint == "is one of them up?"
