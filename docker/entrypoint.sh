#!/usr/bin/env bash
# What an image does with its words: `self-test`, or the trainer's commands, or a server's options after those that training needs.
# Any user may run it: where the home cannot be written, caches go to a folder of their own.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ ! -w "${HOME:-/nonexistent}" ]; then
    HOME="$(mktemp -d)"
    export HOME
fi
if [ "${1:-}" = self-test ]; then exec python3 "$here/self_test.py" "$MEGATRON_FORK_IMAGE"; fi
if [ "$MEGATRON_FORK_IMAGE" = trainer ]; then exec python3 -m megatron_fork "$@"; fi
exec python3 -m megatron_fork.serving.start "$MEGATRON_FORK_IMAGE" --host "$MEGATRON_FORK_HOST" --port "$MEGATRON_FORK_PORT" "$@"
