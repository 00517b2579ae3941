"""One command that measures everything that only a GPU can show: scripts/gpu_check.sh starts it, docs/gpu_check.md explains it.

The driver needs Python alone. What it runs are the benchmarks and tests of this project, each a process of its own, so that
one that hangs, crashes or lacks a package takes nothing else with it.
"""
