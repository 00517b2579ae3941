"""Command line of scripts/gpu_check.sh: what only a GPU can show, measured by one command. docs/gpu_check.md explains it."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

from gpu_check import budget, machine, parts, running, wheels
from gpu_check.errors import CheckError
from gpu_check.results import FINAL, Results
from gpu_check.session import Session, exit_code
from gpu_check.summary import markdown

PROJECT = Path(__file__).parents[1]
# A second state of the code or another GPU in the same folder is refused by these.
FIXED = ("commit", "smoke", "gpu")


def options_of(words: list[str]) -> argparse.Namespace:
    table = "\n".join(f"  {part.name:20s}{part.what}" for part in parts.PARTS)
    parser = argparse.ArgumentParser(
        prog="bash scripts/gpu_check.sh",
        description="What only a GPU can show, in one command.",
        epilog=f"parts, in this order (head, size, quickstart name all that begin so):\n{table}\n\n"
        "exit code 0: all that ran is right; 1: something is wrong, or this machine cannot;\n"
        "2: the command line cannot be used; 75 and 130: stopped, go on with --missing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all where none is named")
    parser.add_argument("--minutes", type=float, help="for all of it, 8 where not said (smoke: 20)")
    parser.add_argument("--out", type=Path, help="folder of the results; runs/gpu-check-DATE where not said")
    parser.add_argument("--smoke", action="store_true", help="every part at a size for a CPU")
    parser.add_argument("--missing", action="store_true", help="only parts that have no result in --out yet")
    parser.add_argument("--even-if-busy", action="store_true", help="take times although others use the GPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels; what Python lacks is unpacked from it")
    parser.add_argument("--kernels", type=Path, help="Triton's cache; $TRITON_CACHE_DIR or runs/kernels where not said")
    chosen = parser.parse_args(words)
    chosen.minutes = chosen.minutes or (20.0 if chosen.smoke else 8.0)
    return chosen


def folder_of(path: Path | None) -> Path:
    """Made if need be, and tried."""
    folder = path or PROJECT / "runs" / f"gpu-check-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tried = folder / ".tried"
        tried.write_text("")
        tried.unlink()
    except OSError as error:
        raise CheckError(f"--out {folder} cannot be written: {error.strerror}", hint="give another folder") from error
    return folder.resolve()


def check(options: argparse.Namespace, python: str) -> int:
    began = time.monotonic()
    if not options.minutes > 0:
        raise CheckError(f"--minutes {options.minutes:g} is not above 0", hint="8 are enough on an H100")
    wanted = parts.chosen(options.parts)
    if options.missing and options.out is None:
        raise CheckError("--missing goes on in a folder, and --out names none", hint="give the folder of the results")
    folder = folder_of(options.out)
    variables = variables_of(options, folder)
    lines = []
    if options.wheels:
        unpacked, problem = wheels.unpack(python, options.wheels, folder / "packages")
        lines.append(problem or f"from {options.wheels}: {', '.join(unpacked) or 'nothing that is not installed'}")
    found = machine.look(python, PROJECT, wanted, smoke=options.smoke, variables=variables)
    about = {
        "command": shlex.join(["bash", "scripts/gpu_check.sh", *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit_of(PROJECT),
        "smoke": options.smoke,
        "minutes": options.minutes,
        "gpu": found.gpu["name"] if found.gpu else None,
        "machine": found.as_data(),
    }
    results = Results.opened(folder, about, fixed=FIXED)
    if options.missing:
        wanted = [
            part for part in wanted if part.name not in results.parts or results.parts[part.name].result not in FINAL
        ]
    session = Session(python, PROJECT, results, found, options.smoke, variables)
    runs = session.without_hindered(wanted, even_if_busy=options.even_if_busy)
    if not options.smoke:
        budget.refuse_too_few(runs, options.minutes)
    for line in [*found.lines, *lines]:
        print(line, flush=True)
    try:
        session.run(runs, began + options.minutes * 60)
    finally:
        results.write()
        ordered = [results.parts[part.name] for part in parts.PARTS if part.name in results.parts]
        (folder / "summary.md").write_text(markdown(results.about, ordered))
        print(f"results in {folder}/results.json and summary.md", flush=True)
    return exit_code([results.parts[part.name] for part in wanted])


def variables_of(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The environment of every part."""
    path = [str(PROJECT), str(folder / "packages"), os.environ.get("PYTHONPATH", "")]
    kernels = options.kernels or Path(os.environ.get("TRITON_CACHE_DIR") or PROJECT / "runs" / "kernels")
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TRITON_CACHE_DIR": str(kernels.resolve())}
    if options.smoke:
        # Also where there is a GPU: what runs is what a machine without one can run.
        variables |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return variables


def main() -> int:
    python = os.environ.get("PYTHON") or sys.executable
    running.adopt_orphans()
    try:
        with running.signals_stop():
            return check(options_of(sys.argv[1:]), shutil.which(python) or python)
    except CheckError as error:
        print(f"error: {error}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    except running.Stopped as stop:
        print(f"stopped by {stop}; the same command with --missing goes on", file=sys.stderr)
        return 130 if stop.number == signal.SIGINT else 75


if __name__ == "__main__":
    raise SystemExit(main())
