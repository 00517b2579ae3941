"""No more requests at a time than this process may open connections for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from megatron_fork.rollout.config import RemoteConfig, RolloutConfig
from megatron_fork.rollout.servers.wire import connections_allowed


def within_open_files(config: RolloutConfig, say: Callable[[str], None]) -> RemoteConfig:
    """The settings of servers, with as many requests to each as the limit of open files leaves; `say` tells if it is fewer."""
    remote, servers = config.remote, len(config.servers)
    allowed = max(1, connections_allowed(remote.requests_per_server * servers) // servers)
    if allowed < remote.requests_per_server:
        say(
            f"the limit of open files leaves {allowed} of rollout.remote.requests_per_server="
            f"{remote.requests_per_server} requests for each of {servers} servers: raise it with `ulimit -Hn`"
        )
        return replace(remote, requests_per_server=allowed)
    return remote
