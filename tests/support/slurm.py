"""A Slurm of one's own: munge, a controller and node daemons on loopback, in a temporary folder, gone afterwards."""

import getpass
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.engine_servers import free_port

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "scripts" / "slurm" / "train.sbatch"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
# Requeued jobs wait for the life of a credential, two minutes unless set, and at least five seconds. A dead node is noticed
# after five minutes unless set.
CONFIGURATION = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
FirstJobId={first_job}
SelectType=select/cons_tres
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=30
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=8000 State=UNKNOWN\n"


# A run of seconds, on nodes without GPUs, that saves after every step.
SMALL = (
    *("sft.steps=20", "train.prompts_per_step=4", "train.prompts_per_mini_batch=2", "rollout.samples=4"),
    *("rollout.dynamic_sampling=false", "objective.entropy_coef=0.01", "data.held_out=8", "evaluation.samples=1"),
    *("evaluation.every=0", "run.checkpoint_every=1", "cluster.gpus_per_node=0", "cluster.nodes=2"),
)


def steps_of(folder: Path) -> list[int]:
    """The trainer steps in metrics.jsonl, in their order; a line that is being written does not count yet."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [int(row["step"]) for row in rows if row["stage"] == "train"]


def reaches(folder: Path, step: int, limit: float = 240.0) -> None:
    """Wait until a run has made that step."""
    waited_for(lambda: step in steps_of(folder), limit, f"step {step} in {folder}")


def missing_programs() -> list[str]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def waited_for(what: Callable[[], object], limit: float, name: str) -> None:
    deadline = time.monotonic() + limit
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {limit:g} s: {name}")
        time.sleep(0.2)


def _parent(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def _is_starter(number: int) -> bool:
    """Whether it is the process of Slurm's that starts and watches a step's tasks on a node."""
    return Path(f"/proc/{number}/cmdline").read_bytes().startswith(b"slurmstepd")


class Job:
    """A job, its own output and its state."""

    def __init__(self, cluster: "ThrowAwayCluster", number: str, output: Path) -> None:
        self.cluster, self.number, self.output = cluster, number, output

    @property
    def state(self) -> str:
        return self.shown("JobState")

    @property
    def exit_code(self) -> int:
        return int(self.shown("ExitCode").partition(":")[0])

    @property
    def starts(self) -> int:
        return int(self.shown("Restarts")) + 1

    def shown(self, name: str) -> str:
        words = self.cluster.run("scontrol", "show", "job", self.number, "--oneliner").split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait(self, limit: float = 240.0) -> str:
        """Its state once it has ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        try:
            waited_for(lambda: self.state in ended, limit, f"the end of job {self.number}")
        except AssertionError as error:
            raise AssertionError(f"{error}, which is {self.state}\n{self.said()[-3000:]}") from error
        return self.state


class ThrowAwayCluster:
    """Daemons that belong to this object; `stop` ends them and whatever their jobs have left."""

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        self.folder, self.nodes = folder, nodes
        self.daemons: dict[str, subprocess.Popen] = {}
        for name in ("state", *(f"spool.{node}" for node in nodes)):
            (folder / name).mkdir()
        host = {"host": socket.gethostname(), "user": getpass.getuser()}
        # Ranks meet at a port that is computed from the job's number, and two such clusters may run on one machine.
        text = CONFIGURATION.format(folder=folder, port=free_port(), first_job=random.randrange(1, 60_000), **host)
        lines = [NODE.format(node=node, port=free_port(), **host) for node in nodes]
        (folder / "slurm.conf").write_text(text + "".join(lines))
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        self.variables = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def start(self) -> None:
        of_munge = [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed", "key")]
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *of_munge)
        waited_for((self.folder / "munge.socket").exists, 20, "munge's socket")
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        waited_for(lambda: self.idle() == len(self.nodes), 60, "idle nodes")

    def start_node(self, node: str, *, without: Path | None = None) -> None:
        """With `without`, the node has a folder of its own there, as if that were on no shared file system."""
        words = ["slurmd", "-D", "-N", node]
        if without is not None:
            mounted = f"mount -t tmpfs none {shlex.quote(str(without))} && exec {shlex.join(words)}"
            words = ["unshare", "--mount", "bash", "-c", mounted]
        self._daemon(*words, name=node)

    @contextmanager
    def without(self, folder: Path, node: str) -> Iterator[None]:
        """The folder is empty on that node, whose daemon is started again for it."""
        self.stop_node(node)
        self.start_node(node, without=folder)
        try:
            yield
        finally:
            self.stop_node(node)
            self.start_node(node)

    def stop_node(self, node: str) -> None:
        self.daemons[node].terminate()
        self.daemons[node].wait(20)

    def lose_node(self, node: str) -> None:
        """Kill the node's daemon and all that it has started, as if its power had gone."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        tasks = self._processes([f"SLURMD_NODENAME={node}"])
        for number in [*tasks, *filter(_is_starter, map(_parent, tasks))]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def _daemon(self, program: str, *words: str, name: str = "") -> None:
        log = (self.folder / f"{name or program}.output").open("a")
        with log:
            self.daemons[name or program] = subprocess.Popen(
                [program, *words], env=self.variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def idle(self) -> int:
        words = ["sinfo", "--noheader", "--partition=main", "--Node", "--states=idle"]
        done = subprocess.run(words, env=self.variables, capture_output=True, text=True, check=False)
        return len(done.stdout.splitlines())

    def run(self, *words: str) -> str:
        done = subprocess.run(words, env=self.variables, capture_output=True, text=True, check=False, cwd=PROJECT)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout

    def submit(self, *words: str, options: Sequence[str] = (), script: Path = SCRIPT) -> Job:
        """A job of `script` with these words."""
        output = self.folder / f"job-{time.monotonic_ns()}.out"
        number = self.run("sbatch", "--parsable", f"--output={output}", *options, str(script), *words).strip()
        return Job(self, number, output)

    def preempt(self, job: Job) -> None:
        """Take the job's nodes away for another job, as Slurm does for one of a partition that goes first."""
        starts = job.starts
        options = ["--partition=urgent", f"--nodes={len(self.nodes)}", "--exclusive", "--output=/dev/null"]
        self.run("sbatch", *options, "--wrap", "sleep 1")
        waited_for(lambda: job.starts > starts, 90, "a preempted job's way back into the queue")

    def processes(self, job: Job, *wanted: str) -> list[int]:
        """Processes of the job whose command line or variables have all these words."""
        return self._processes([f"SLURM_JOB_ID={job.number}", *wanted])

    def _processes(self, wanted: Sequence[str]) -> list[int]:
        """Those that this cluster has started and whose command line or variables have all these words."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                number = int(process.name)
                texts = [(process / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
                words = {word for text in texts for word in text.split("\0")}
                if words.issuperset([f"SLURM_CONF={self.variables['SLURM_CONF']}", *wanted]):
                    found.append(number)
        return found

    def kill(self, job: Job, *wanted: str) -> None:
        """Kill -9 of those processes."""
        found = self.processes(job, *wanted)
        assert found, f"no process with {wanted}"
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def kill_script(self, job: Job) -> None:
        """Kill -9 of the shell that runs the job's script, and of no other process."""
        (shell,) = [
            number for number in self.processes(job, "SLURM_NODEID=0", "/bin/bash") if _is_starter(_parent(number))
        ]
        os.kill(shell, signal.SIGKILL)

    def stop(self) -> None:
        with suppress(AssertionError):
            self.run("scancel", "--user", getpass.getuser())
            waited_for(lambda: self.idle() == len(self.nodes), 45, "idle nodes")
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


@contextmanager
def throw_away_cluster(folder: Path, nodes: Sequence[str] = ("n1", "n2")) -> Iterator[ThrowAwayCluster]:
    cluster = ThrowAwayCluster(folder, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
