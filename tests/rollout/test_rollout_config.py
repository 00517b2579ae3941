"""Settings that cannot be meant are refused in one line; a distribution that is not training's must be declared."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from megatron_fork.errors import KEY_VARIABLE, ConfigError
from megatron_fork.rollout import ColocatedConfig, RemoteConfig, RolloutConfig
from megatron_fork.rollout.servers.vllm import VllmServer
from megatron_fork.serving import EntropyTemperature

SERVERS = ["http://node1:8000", "http://node2:8000"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"servers": SERVERS}, "rollout.engine=embedded with rollout.servers="),
        ({"engine": "vllm_colocated", "servers": SERVERS}, "rollout.engine=vllm_colocated with rollout.servers="),
        ({"engine": "vllm_colocated", "top_k": 9}, "top_k=9 with rollout.engine=vllm_colocated"),
        ({"engine": "vllm", "servers": ["node1:8000"]}, "rollout.servers: node1:8000 is not an address"),
        ({"engine": "vllm", "servers": [SERVERS[0]] * 2}, "names a server twice"),
        ({"top_p": 0.0}, "rollout.top_p=0.0"),
        ({"top_k": -1}, "rollout.top_k=-1"),
        ({"probe_limit": 0.0}, "rollout.probe_limit=0.0"),
        ({"probe_prompts": -1}, "rollout.probe_prompts=-1"),
        (
            {"engine": "vllm", "servers": SERVERS, "top_p": 0.9},
            "rollout.top_p=0.9, rollout.top_k=0 with rollout.engine=vllm",
        ),
        ({"entropy_temperature": EntropyTemperature(high=1.5)}, "rollout.entropy_temperature: the engine's log-probs"),
        ({"min_p": 1.0}, "rollout.min_p=1.0"),
        ({"engine": "vllm", "servers": SERVERS, "min_p": 0.1}, "rollout.min_p=0.1 with rollout.engine=vllm"),
        (
            {"engine": "vllm_colocated", "top_k": 9, "replay_sampling_mask": True},
            "rollout.replay_sampling_mask=true with rollout.engine=vllm_colocated, which does not say",
        ),
        (
            {"engine": "sglang", "servers": SERVERS, "top_p": 0.9, "replay_sampling_mask": True},
            "rollout.engine=sglang and rollout.top_k=0: it reports",
        ),
        (
            {
                "entropy_temperature": EntropyTemperature(high=1.5),
                "top_k": 9,
                "replay_sampling_mask": True,
                "mismatch_limit": math.inf,
            },
            "replay_sampling_mask=true with rollout.entropy_temperature",
        ),
        (
            {"entropy_temperature": EntropyTemperature(high=1.5), "temperature": 0.7, "mismatch_limit": math.inf},
            "rollout.temperature=0.7 with rollout.entropy_temperature",
        ),
    ],
)
def test_refused(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RolloutConfig(**settings)


def test_declared_and_undisturbed_distributions_are_taken() -> None:
    RolloutConfig(top_p=0.9)
    RolloutConfig(engine="sglang", servers=SERVERS, top_p=0.9, top_k=20)
    RolloutConfig(engine="vllm", servers=SERVERS, top_p=0.9, mismatch_limit=math.inf)
    RolloutConfig(entropy_temperature=EntropyTemperature(high=1.5), mismatch_limit=math.inf)


def test_with_replay_of_what_was_drawn_from_no_mismatch_need_be_allowed() -> None:
    for engine in ("vllm", "sglang"):
        for cuts in ({"top_k": 9}, {"top_k": 256, "top_p": 0.9}, {"top_k": 256, "min_p": 0.1}, {}):
            config = RolloutConfig(engine=engine, servers=SERVERS, replay_sampling_mask=True, **cuts)
            assert config.replays_mask == bool(cuts)
    assert RolloutConfig(top_p=0.9, replay_sampling_mask=True).replays_mask
    assert not RolloutConfig(top_p=0.9).replays_mask


@pytest.mark.parametrize(
    ("name", "value"),
    [("tensor", 0), ("bucket_mebibytes", 0), ("kv_cache_mebibytes", -1), ("gpu_memory_utilization", 1.0)],
)
def test_sizes_of_a_colocated_engine(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.colocated\.{name}={value}"):
        ColocatedConfig(**{name: value})


def test_limits_of_servers_are_positive() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.remote\.idle_seconds=0"):
        RemoteConfig(idle_seconds=0)
    with pytest.raises(ConfigError, match=r"rollout\.entropy_temperature\.low=-0\.5"):
        EntropyTemperature(low=-0.5)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "node1:8000",
            "ftp://node1",
            "http://",
            "http:///path",
            "http://[::1",
            "http://node1:port",
            "http://node1:-1",
            "http://999.1.1.1",
            "http://[v1.x]:80",
            "http://[::1]x",
            "http://" + "a/" * 40_000,
        ),
        *("http://node1:65536", "http://node1:0", "http://a b", "http://\x1b[31m", "http://\u2028", "http://n\n", ""),
    ],
)
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.servers: .* is not an address") as caught:
        RolloutConfig(engine="vllm", servers=[url])
    assert caught.value.message.isprintable() and caught.value.hint


@pytest.mark.parametrize("key", ["key\n", " 5f0c", "two keys", "ключ", "a\r\nHost: b", "\x7f"])
def test_a_key_that_no_header_takes_is_named_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ConfigError, match=f"the variable {KEY_VARIABLE} holds more than a key") as caught:
        RolloutConfig(engine="vllm", servers=SERVERS)
    assert key not in caught.value.message and caught.value.message.isprintable()
    RolloutConfig()  # it is for servers


@examples(deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=20), st.sampled_from(["", ":80", "/x"]))
def test_what_is_taken_for_an_address_can_be_asked(host: str, rest: str) -> None:
    url = f"http://{host}{rest}"
    try:
        RolloutConfig(engine="vllm", servers=[url])
    except ConfigError:
        return
    VllmServer(url, RemoteConfig(), 10)


@pytest.mark.parametrize("url", ["http://node1:8000", "https://node1/prefix", "http://[::1]:80", "http://127.0.0.1"])
def test_addresses_are_taken(url: str) -> None:
    server = VllmServer(RolloutConfig(engine="vllm", servers=[url]).servers[0], RemoteConfig(), 10)
    assert server.endpoint[0] in url and server.endpoint[1] in (80, 443, 8000)
