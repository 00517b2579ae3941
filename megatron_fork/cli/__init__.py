"""The command line: exit code 0 only on success; an error is one line and a hint."""

from megatron_fork.cli.commands import app, main

__all__ = ["app", "main"]
