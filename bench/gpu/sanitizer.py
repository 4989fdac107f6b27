"""compute-sanitizer's four tools over every kernel, and over a planted fault that each must find.

python -m bench.gpu.sanitizer --work DIR
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PLANTED = Path(__file__).with_name("planted.cu")
_CODE = 86  # exit code of the sanitizer where it found something
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards?")


class UnclearError(RuntimeError):
    """A tool did not say how many errors there were."""


def found(output: str, code: int) -> int:
    """How many errors a run of the sanitizer reports.

    Raises
    ------
    UnclearError
        If it has no summary, or one that does not fit the exit code: then it did not look, or the program failed.
    """
    matches = _SUMMARY.findall(output)
    if not matches:
        raise UnclearError(f"expected a summary of errors, got none (exit code {code})")
    errors = sum(int(first or second) for first, second in matches)
    if (code == _CODE) != (errors > 0):
        raise UnclearError(
            f"expected exit code {_CODE} if and only if there are errors, got {code} and {errors} errors"
        )
    if code not in (0, _CODE):
        raise UnclearError(f"expected the program to succeed, got exit code {code}")
    return errors


def sanitize(tool: str, command: Sequence[str], seconds: float, log: Path) -> int:
    """Run a command under a tool; returns how many errors it reports.

    Raises
    ------
    UnclearError
        If that cannot be told.
    """
    whole = ["compute-sanitizer", f"--tool={tool}", f"--error-exitcode={_CODE}", "--print-limit=20", *command]
    if tool == "racecheck":
        whole[2:2] = ["--racecheck-report=all"]
    began = time.monotonic()
    try:
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.run(whole, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired as error:
        raise UnclearError(f"expected an end within {seconds:.0f} s, got none") from error
    except OSError as error:
        raise UnclearError(f"expected compute-sanitizer to start: {error}") from error
    errors = found(log.read_text(encoding="utf-8", errors="replace"), code)
    print(f"{tool}: {errors} errors in {time.monotonic() - began:.1f} s: {' '.join(command)}", flush=True)
    return errors


def check(tool: str, planted: Path, programs: Sequence[Sequence[str]], seconds: float, folder: Path) -> list[str]:
    """Try a tool on the planted fault and without it, then on the programs; returns what is wrong."""
    wrong = []
    trials = [
        ([str(planted), "none"], False),
        ([str(planted), tool], True),
        *((program, False) for program in programs),
    ]
    for number, (command, faulty) in enumerate(trials):
        log = folder / f"{tool}-{number}.log"
        try:
            errors = sanitize(tool, command, min(seconds, 60) if number < 2 else seconds, log)
        except UnclearError as error:
            wrong.append(f"{tool}: {error}: {' '.join(command)}")
        else:
            if faulty == (errors > 0):
                continue
            expected = "its planted fault to be found" if faulty else "no errors"
            wrong.append(f"{tool}: expected {expected}, got {errors}: {' '.join(command)}")
        print(f"{wrong[-1]}\n{_end(log)}", flush=True)
        if number < 2:
            break  # what it says of the programs would mean nothing
    return wrong


def _end(log: Path, lines: int = 60) -> str:
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def build(folder: Path, architecture: str) -> Path:
    """Compile the program of planted faults.

    Raises
    ------
    subprocess.CalledProcessError, OSError
        If nvcc fails, or is not there.
    """
    planted = folder / "planted"
    subprocess.run(
        ["nvcc", "-std=c++17", f"-arch={architecture}", "-lineinfo", "-o", str(planted), str(PLANTED)],
        check=True,
        timeout=120,
    )
    return planted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitizer", description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(TOOLS)} (default: all)")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where to build and keep logs")
    parser.add_argument("--architecture", default="native", help="of nvcc's -arch")
    parser.add_argument("--backends", default="cuda", help="of cuda, triton")
    parser.add_argument("--seconds", type=float, default=200.0, help="at most, for a tool and a program")
    given = parser.parse_args(arguments)
    for tool in given.tools:
        if tool not in TOOLS:
            parser.error(f"TOOL: expected one of {', '.join(TOOLS)}, got {tool!r}")
    if shutil.which("compute-sanitizer") is None:
        print("bench.gpu.sanitizer: expected compute-sanitizer on the PATH, found none", file=sys.stderr)
        return 1
    given.work.mkdir(parents=True, exist_ok=True)
    try:
        planted = build(given.work, given.architecture)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"bench.gpu.sanitizer: planted.cu could not be built: {error}", file=sys.stderr)
        return 1
    programs = [[sys.executable, "-m", "bench.gpu.sanitize", "--backend", name] for name in given.backends.split(",")]
    wrong = [
        line for tool in given.tools or TOOLS for line in check(tool, planted, programs, given.seconds, given.work)
    ]
    print("\n".join(wrong) if wrong else "each tool found its planted fault, and nothing else")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
