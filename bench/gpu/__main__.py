"""Measure tam_fast on a GPU beside what a user would otherwise write there, print the tables and keep them as CSV.

Each table is measured in a process of its own, and every result is checked against the CPU's maps before it is timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import RESULTS, ROOT
from bench.gpu import TABLES, file_name
from bench.machine import gpu_line
from bench.records import Record, read, write

SECONDS = 150.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder of the CSVs (default: bench/results)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="a table; cases that would begin later are left out"
    )
    parser.add_argument("--backends", metavar="NAMES", help="of cuda, triton (default: those that can be used)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on whatever there is; nothing is kept")
    parser.add_argument("--list", action="store_true", help="name the tables")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    given = parser.parse_args(arguments)
    for name in given.tables:
        if name not in TABLES:
            parser.error(f"TABLE: expected one of {', '.join(TABLES)}, got {name!r}")
    if not given.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {given.seconds:g}")
    return given


def usable(device: Any, wanted: str | None) -> list[str]:
    """Backends of tam_fast that work on the device; says why another does not.

    Raises
    ------
    RuntimeError
        If one that is wanted cannot be used, or none can.
    """
    from tam_fast.backends import selection

    found = []
    for name in wanted.split(",") if wanted else ("cuda", "triton"):
        try:
            if selection.resident(device, name) is None:
                raise RuntimeError(f"{name}: expected a backend whose tensors stay on the device")
        except (RuntimeError, ValueError, ImportError) as error:
            if wanted:
                raise
            print(f"not measured: {name}: {error}", flush=True)
            continue
        found.append(name)
    if not found:
        raise RuntimeError(f"backends: expected one that works on {device}, got none")
    return found


def measure(given: argparse.Namespace, folder: Path) -> int:
    """Measure tables in this process; returns the exit code."""
    import torch

    from bench.gpu import machine
    from bench.gpu.clock import Cuda, Host
    from bench.gpu.tables import MEASURE, Run

    if not (torch.cuda.is_available() or given.rehearse):
        print("bench.gpu: expected a CUDA device, torch sees none here (--rehearse needs none)", file=sys.stderr)
        return 1
    clock = Cuda() if torch.cuda.is_available() else Host()
    backends, code = usable(clock.device, given.backends), 0
    for name in given.tables:
        described = machine.describe(clock.device, backends)
        run = Run(clock, backends, given.rehearse, time.monotonic() + given.seconds)
        MEASURE[name](run)
        if run.left_out:
            described["left out"] = "; ".join(run.left_out)
        if run.failures:
            described["failed"] = "; ".join(run.failures)
            code = 3
        write(folder / file_name(name), run.records, described)
    return code


def show(title: str, records: Sequence[Record], described: dict[str, str]) -> None:
    """Print a table, in plain text."""
    print(f"\n{title}\n{gpu_line(described)}")
    case = ""
    for row in records:
        if row.case != case:
            print(f"  {row.case}")
            case = row.case
        spread = "" if row.p20 is None or row.p80 is None else f" ({row.p20:.2f} to {row.p80:.2f})"
        ratio = "" if row.ratio_p50 is None else f"  {row.ratio_p50:.2f}x"
        print(f"    {row.name:48} {row.p50:12.2f}{spread} {row.unit}{ratio}  {row.note}")
    for key in ("left out", "failed"):
        if key in described:
            print(f"  {key}: {described[key]}")


def _in_a_process(given: argparse.Namespace, name: str, folder: Path) -> int:
    command = [sys.executable, "-m", "bench.gpu", name, "--here", "--output", str(folder)]
    command += ["--seconds", str(given.seconds)]
    command += ["--backends", given.backends] if given.backends else []
    command += ["--rehearse"] if given.rehearse else []
    try:
        # Beyond its own deadline a table has a while to finish the case that it is in.
        return subprocess.run(command, check=False, timeout=given.seconds + 120).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped, it took more than {given.seconds + 120:.0f} s", flush=True)
        return 124


def work(given: argparse.Namespace, folder: Path) -> int:
    """Measure and show."""
    if given.here:
        return measure(given, folder)
    code = 0
    for name in given.tables:
        file = folder / file_name(name)
        file.unlink(missing_ok=True)
        returned = _in_a_process(given, name, folder)
        code = code or returned
        if file.is_file():
            show(TABLES[name], *read(file))
        if returned:
            print(f"{name}: failed with exit code {returned}", flush=True)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = parse(arguments)
    if given.list:
        for name, title in TABLES.items():
            print(f"{name:10} {title}")
        return 0
    given.tables = given.tables or list(TABLES)
    if given.rehearse and not given.output:
        with tempfile.TemporaryDirectory() as folder:
            return work(given, Path(folder))
    folder = (given.output or RESULTS).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return work(given, folder)


if __name__ == "__main__":
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    sys.exit(main())
