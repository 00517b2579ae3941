"""How responses are drawn, and from which engine."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Gt, Lt

from megatron_fork.errors import KEY_VARIABLE, ConfigError
from megatron_fork.recipe import (
    EntryOf,
    FractionBelowOne,
    Mebibytes,
    NatsOrInfinite,
    NonNegativeInt,
    NonNegativeMebibytes,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Seconds,
    Settings,
    Tokens,
)
from megatron_fork.rollout.engines import ENGINES, EngineKind, SyncWay, check_settings
from megatron_fork.serving import EntropyTemperature

# The characters that an address or a header may hold.
_PLAIN = re.compile(r"[!-~]+").fullmatch


@dataclass
class RemoteConfig(Settings, room="rollout.remote"):
    """How rank 0 uses the servers."""

    requests_per_server: PositiveInt = 256
    """Requests that one server works on at a time; the rest wait here, so that a free server finds work."""
    stream_interval: Tokens = 32
    """Tokens of a response that arrive together: a failing server loses fewer than this."""
    bucket_mebibytes: Mebibytes = 512
    """Weights that are sent, and held in rank 0's memory, at a time."""
    delta_updates: bool = False
    """Send vLLM's servers what has changed since their last weights, bit for bit, and everything to one that has missed them.
    The first rank and each worker keep a copy of all weights in main memory for it."""
    verify_weights: Literal["first", "always", "never"] = "first"
    """When a server must prove by checksums of what it holds that all weights have arrived. first: at the first update that it
    gets, and the first after it was down."""
    idle_seconds: Seconds = 300.0
    """A response is drawn elsewhere if its first token, or `stream_interval` more tokens, do not arrive in this time. It keeps
    its server while other responses of that server arrive in time (it may be queued there), and while an update holds it."""
    control_seconds: Seconds = 600.0
    """Time-out of one step of a weight update; half of it is for the transfer itself."""
    health_seconds: Seconds = 5.0
    """Time between two checks of a server's health."""
    health_timeout_seconds: Seconds = 10.0
    """Time-out of a health check. SGLang draws a token before it answers, which takes a second on an idle server."""
    patience_seconds: Seconds = 1800.0
    """The run ends when no server is ready for this long; its state was saved when the wait began."""
    attempts: PositiveInt = 5
    """How often a request may fail before the run ends, and how often a server may fail before a token of it counts again."""


@dataclass
class ColocatedConfig(Settings, room="rollout.colocated"):
    """vLLM in the trainer's processes."""

    tensor: PositiveInt = 1
    """Consecutive ranks that form one engine, each with a part of every layer; it may differ from `parallel.tensor`."""
    gpu_memory_utilization: Annotated[float, Gt(0), Lt(1)] = 0.4
    """Fraction of each GPU's memory that the engine may hold while it is awake; 0.4 leaves more than half to the policy."""
    kv_cache_mebibytes: NonNegativeMebibytes = 0
    """Cache of keys and values on each rank; 0: what `gpu_memory_utilization` leaves, and 512 on a CPU."""
    sleep: bool = True
    """Free the engine's GPU memory while the policy trains."""
    eager: bool = False
    """Run without CUDA graphs: it starts sooner, holds less memory and decodes more slowly."""
    bucket_mebibytes: Mebibytes = 512
    """Weights that are copied, and held twice, at a time."""


@dataclass
class RolloutConfig(Settings, room="rollout"):
    """How responses are drawn."""

    engine: Annotated[str, EntryOf(tuple(ENGINES))] = "embedded"
    """embedded, vllm_colocated: in the trainer's processes; vllm, sglang: servers; module:name: your own engine
    (docs/extending.md)."""
    servers: list[str] = field(default_factory=list)
    """Addresses of the servers, such as http://node7:8000."""
    sync: SyncWay = "disk"
    """How servers get new weights: from a folder that trainer and servers can read, or by a broadcast from rank 0."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    colocated: ColocatedConfig = field(default_factory=ColocatedConfig)
    samples: PositiveInt = 16
    """Responses per prompt, which form its prompt group."""
    temperature: PositiveFloat = 1.0
    """Temperature of the softmax that tokens are sampled from and whose log-probs are trained; the paper uses 1."""
    top_p: PositiveFraction = 1.0
    """Sample from the most likely tokens that hold this fraction of the probability; 1: from all tokens."""
    top_k: NonNegativeInt = 0
    """Sample from this many of the most likely tokens; 0: from the whole vocabulary."""
    min_p: FractionBelowOne = 0.0
    """Sample from the tokens that are at least this many times as likely as the most likely one; 0: from all."""
    replay_sampling_mask: bool = False
    """Train under the softmax over the tokens that `top_p`, `top_k` and `min_p` left to be drawn from, which the engine then
    reports for every token; servers need a `top_k` for it. Tokens are still selected by the entropy of the whole softmax."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end a response, besides those that the tokenizer, generation_config.json and config.json name."""
    entropy_temperature: EntropyTemperature = field(default_factory=EntropyTemperature)
    max_response_tokens: Tokens = 20480
    """Length at which a response is cut."""
    batch_size: PositiveInt = 256
    """Sequences that an engine in the trainer's processes decodes at a time."""
    dynamic_sampling: bool = True
    """Replace groups whose rewards are all equal by groups of new prompts."""
    max_rounds: PositiveInt = 10
    """How often a group without signal is replaced at most; the step then trains on the groups that have signal."""
    max_staleness: NonNegativeInt = 0
    """How many updates older than the policy the weights that began a response may be. 0: strictly on-policy. k: groups of
    up to k further steps are in flight while the policy trains; needs `objective.correction`."""
    tail: Literal["generate", "stop"] = "generate"
    """What happens to the groups in flight while the policy trains. generate: servers go on, and take new weights in the middle
    of responses. stop: responses are aborted, kept with their tokens, and continued in the next step; for an engine that
    shares the trainer's processors."""
    mismatch_limit: NatsOrInfinite = 0.01
    """The run stops when |engine - trainer| log-prob of a token is larger than this."""
    probe_limit: NatsOrInfinite = 0.01
    """The same limit for a few responses that every server draws after each weight update."""
    probe_prompts: NonNegativeInt = 4
    """Responses that each server draws for that check; 0 turns it off."""

    def check(self) -> None:
        if self.samples < 2 and self.dynamic_sampling:
            raise ConfigError(
                "rollout.samples=1 with rollout.dynamic_sampling=true: a group of one response never has mixed rewards",
                hint="draw at least 2 samples, for example 16",
            )
        self._check_servers()
        self._check_sampling()
        if self.engine in ENGINES:  # the user's own engine is imported only where it runs
            self.check_kind(ENGINES[self.engine])

    def check_kind(self, kind: EngineKind) -> None:
        """Raise `ConfigError` for settings that an engine of this kind does not support."""
        check_settings(self, kind)
        foreign = self.foreign_distribution(kind)
        if foreign and math.isfinite(self.mismatch_limit):
            raise ConfigError(
                f"{foreign}: the engine's log-probs are then not those of the softmax that training uses",
                hint="train under the same softmax with rollout.replay_sampling_mask=true, or allow the mismatch with "
                "rollout.mismatch_limit=.inf and correct it with objective.correction"
                if self.truncates and self.entropy_temperature.is_plain
                else "allow the mismatch with rollout.mismatch_limit=.inf, and correct it with objective.correction",
            )

    def _check_servers(self) -> None:
        for url in self.servers:
            if not _is_address(url):
                raise ConfigError(
                    f"rollout.servers: {url if url.isprintable() else ascii(url)} is not an address",
                    hint="write it as http://host:port",
                )
        if len(set(self.servers)) < len(self.servers):
            raise ConfigError(f"rollout.servers={self.servers} names a server twice", hint="name each once")
        key = os.environ.get(KEY_VARIABLE, "")
        if self.servers and key and _PLAIN(key) is None:
            raise ConfigError(
                f"the variable {KEY_VARIABLE} holds more than a key: a line break, a blank or a non-ASCII character",
                hint="give the key alone; if it was read from a file, that file may end with an empty line",
            )

    def _check_sampling(self) -> None:
        by_entropy = self.entropy_temperature
        if not by_entropy.is_plain and self.temperature != 1.0:
            raise ConfigError(
                f"rollout.temperature={self.temperature} with rollout.entropy_temperature",
                hint="keep rollout.temperature=1: `high` and `low` replace it",
            )
        if not by_entropy.is_plain and self.replays_mask:
            raise ConfigError(
                "rollout.replay_sampling_mask=true with rollout.entropy_temperature, which training does not follow",
                hint="leave one of them out",
            )

    @property
    def truncates(self) -> bool:
        """Whether some tokens can not be drawn."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    @property
    def replays_mask(self) -> bool:
        """Whether responses come with what each token was drawn from."""
        return self.replay_sampling_mask and self.truncates

    def foreign_distribution(self, kind: EngineKind) -> str:
        """The field that makes the engine report log-probs of another distribution than training's; empty if none does."""
        if not self.entropy_temperature.is_plain:
            return "rollout.entropy_temperature"
        if not kind.full_softmax and self.truncates and not self.replay_sampling_mask:
            min_p = f", rollout.min_p={self.min_p}" if self.min_p else ""
            return f"rollout.top_p={self.top_p}, rollout.top_k={self.top_k}{min_p} with rollout.engine={self.engine}"
        return ""


def _is_address(url: str) -> bool:
    from httpx import URL, InvalidURL  # only for runs with servers: the import takes a while

    try:
        parts = urlsplit(url)
        URL(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and _PLAIN(url) is not None
        )
    except (ValueError, InvalidURL):  # from brackets and from ports
        return False
