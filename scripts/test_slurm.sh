#!/usr/bin/env bash
# Jobs on a real Slurm: munge, a controller and three node daemons on loopback, made for the tests and gone afterwards.
#   bash scripts/test_slurm.sh [pytest argument ...]
# Runs the quickstart in little on two ranks, preempts and requeues it, kills a rank and a vLLM server, and compares with a run that
# nothing interrupts. Without .venv-vllm (scripts/engine_environment.sh vllm) the part with a server is skipped.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! (PATH="$PATH:/usr/sbin" && command -v munged slurmctld slurmd sbatch) >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "Slurm is not installed" "install slurm-wlm and munge, as root: apt-get install slurm-wlm munge"
    fi
    { apt-get update -qq && apt-get install -y -qq slurm-wlm munge; } >/dev/null
fi
export MEGATRON_FORK_SLURM=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest tests/cluster "$@"
