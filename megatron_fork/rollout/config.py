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

# Nothing but what stands in an address, or in a header.
_PLAIN = re.compile(r"[!-~]+").fullmatch


@dataclass
class RemoteConfig(Settings, room="rollout.remote"):
    """How rank 0 deals with servers."""

    requests_per_server: PositiveInt = 256
    """Requests that one server works on at a time; the rest wait here, so that a free server finds work."""
    stream_interval: Tokens = 32
    """Tokens of a response that arrive together: what a failing server takes along is less than this."""
    bucket_mebibytes: Mebibytes = 512
    """Weights that travel, and lie in rank 0's memory, at a time."""
    idle_seconds: Seconds = 300.0
    """A response of which fewer than `stream_interval` tokens arrive in this time, or not the first, is drawn elsewhere: but
    not while other responses of its server come as they should, for it may be queued there, nor while an update holds it."""
    control_seconds: Seconds = 600.0
    """Time-out of a step of a weight update."""
    health_seconds: Seconds = 5.0
    """Between two looks at a server's health."""
    health_timeout_seconds: Seconds = 10.0
    """SGLang draws a token before it answers, which takes a second on an idle server."""
    patience_seconds: Seconds = 1800.0
    """Without any server for this long, the run ends; its state was saved when the wait began."""
    attempts: PositiveInt = 5
    """How often a request may fail before the run ends; how often a server may fall without a token that counts in between."""


@dataclass
class ColocatedConfig(Settings, room="rollout.colocated"):
    """vLLM in the trainer's processes."""

    tensor: PositiveInt = 1
    """Consecutive ranks that form one engine, each with a part of every layer; `parallel.tensor` need not be the same."""
    gpu_memory_utilization: Annotated[float, Gt(0), Lt(1)] = 0.4
    """Share of each GPU that the engine may hold while it is awake, beside the policy: 0.4 leaves that more than half."""
    kv_cache_mebibytes: NonNegativeMebibytes = 0
    """Cache of keys and values on each rank; 0: what that share leaves, on a CPU 512."""
    sleep: bool = True
    """Give the GPU's memory back while the policy trains."""
    eager: bool = False
    """Without CUDA graphs: starts sooner and holds less memory, decodes more slowly."""
    bucket_mebibytes: Mebibytes = 512
    """Weights that are handed over, and held twice, at a time."""


@dataclass
class RolloutConfig(Settings, room="rollout"):
    """How responses are drawn."""

    engine: Annotated[str, EntryOf(tuple(ENGINES))] = "embedded"
    """embedded, vllm_colocated: in the trainer's processes; vllm, sglang: servers; module:name: one of your own
    (docs/extending.md)."""
    servers: list[str] = field(default_factory=list)
    """Addresses of the servers, such as http://node7:8000."""
    sync: SyncWay = "disk"
    """How servers get new weights: a folder that trainer and servers see, or a broadcast from rank 0."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    colocated: ColocatedConfig = field(default_factory=ColocatedConfig)
    samples: PositiveInt = 16
    """Responses per prompt: the group."""
    temperature: PositiveFloat = 1.0
    """Of the softmax that is sampled from, and whose log-probs are trained; 1 is the paper's."""
    top_p: PositiveFraction = 1.0
    """Share of probability that is sampled from; 1: all of it."""
    top_k: NonNegativeInt = 0
    """Most likely tokens that are sampled from; 0: the whole vocabulary."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end a response, beside those that the tokenizer, generation_config.json and config.json name."""
    entropy_temperature: EntropyTemperature = field(default_factory=EntropyTemperature)
    max_response_tokens: Tokens = 20480
    """Where a response is cut."""
    batch_size: PositiveInt = 256
    """Sequences that an engine in the trainer's processes decodes at a time."""
    dynamic_sampling: bool = True
    """Replace groups whose rewards are all equal by new prompts."""
    max_rounds: PositiveInt = 10
    """How often a group without signal is replaced, at most; what has signal by then is trained on."""
    max_staleness: NonNegativeInt = 0
    """How many updates older than the policy the weights may be that began a response. 0: strictly on-policy. k: up to k
    further steps of groups are under way while the policy trains; needs `objective.correction`."""
    tail: Literal["generate", "stop"] = "generate"
    """What becomes of them meanwhile. generate: servers go on, and take new weights in the middle of responses. stop: they are
    aborted, kept with their tokens, and continued in the next step; for an engine that shares the trainer's processors."""
    mismatch_limit: NatsOrInfinite = 0.01
    """Largest |engine - trainer| log-prob of a token that a step may show before the run stops."""
    probe_limit: NatsOrInfinite = 0.01
    """The same, of a few responses that every server draws after each weight update."""
    probe_prompts: NonNegativeInt = 4
    """Responses of that probe; 0 probes nothing."""

    def check(self) -> None:
        if self.samples < 2 and self.dynamic_sampling:
            raise ConfigError(
                "rollout.samples=1 with rollout.dynamic_sampling=true: a group of one never has mixed rewards",
                hint="draw at least 2 samples, say 16",
            )
        self._check_servers()
        self._check_sampling()
        if self.engine in ENGINES:  # one of the user's own is imported by whoever is to run it
            self.check_kind(ENGINES[self.engine])

    def check_kind(self, kind: EngineKind) -> None:
        """Raise `ConfigError` for what does not go with an engine of this kind."""
        check_settings(self, kind)
        foreign = self.foreign_distribution(kind)
        if foreign and math.isfinite(self.mismatch_limit):
            raise ConfigError(
                f"{foreign}: the engine's log-probs are then not those of the softmax that training uses",
                hint="declare the mismatch with rollout.mismatch_limit=.inf, and correct it with objective.correction",
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
        if self.servers and not _is_header(os.environ.get(KEY_VARIABLE, "")):
            raise ConfigError(
                f"{KEY_VARIABLE} of the environment holds more than a key: a line's end, a blank, or a letter beyond ASCII",
                hint="a file that it came from may end with an empty line; give the key alone",
            )

    def _check_sampling(self) -> None:
        by_entropy = self.entropy_temperature
        if not by_entropy.is_plain and self.temperature != 1.0:
            raise ConfigError(
                f"rollout.temperature={self.temperature} with rollout.entropy_temperature",
                hint="keep rollout.temperature=1: `high` and `low` are the temperatures then",
            )

    def foreign_distribution(self, kind: EngineKind) -> str:
        """The field that makes the engine report log-probs of another distribution than training's; empty where none does."""
        if not self.entropy_temperature.is_plain:
            return "rollout.entropy_temperature"
        if not kind.full_softmax and (self.top_p < 1.0 or self.top_k > 0):
            return f"rollout.top_p={self.top_p}, rollout.top_k={self.top_k} with rollout.engine={self.engine}"
        return ""


def _is_header(key: str) -> bool:
    return not key or _PLAIN(key) is not None


def _is_address(url: str) -> bool:
    from httpx import URL, InvalidURL  # not for runs without servers: it takes a while to import

    try:
        parts = urlsplit(url)
        URL(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and _PLAIN(url) is not None
        )
    except (ValueError, InvalidURL):  # of brackets, and of ports
        return False
