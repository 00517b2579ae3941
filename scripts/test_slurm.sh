#!/usr/bin/env bash
# Jobs on a real Slurm: munge, a controller and three node daemons on loopback, made for the tests and gone afterwards.
#   bash scripts/test_slurm.sh [pytest argument ...]
# Runs the quickstart in little on two ranks, preempts and requeues it, kills a rank and a vLLM server, and compares with a run that
# nothing interrupts. Without .venv-vllm (scripts/engine_environment.sh vllm) the part with a server is skipped; CI leaves it out
# (-m "not engines"). MEGATRON_FORK_SLURM=optional: where Slurm is not there and cannot be installed, say so and do without.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
has_slurm() (
    PATH="$PATH:/usr/sbin:/sbin"
    for program in munged slurmctld slurmd sbatch; do command -v "$program" >/dev/null || exit 1; done
)
if ! has_slurm && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq slurm-wlm munge; } >/dev/null 2>&1 || true
fi
if ! has_slurm; then
    if [ "${MEGATRON_FORK_SLURM:-}" = optional ]; then
        echo "not tested: jobs on Slurm, which is not installed here and cannot be"
        exit
    fi
    fail "Slurm is not installed" "install slurm-wlm and munge, as root: apt-get install slurm-wlm munge"
fi
export MEGATRON_FORK_SLURM=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest tests/cluster "$@"
