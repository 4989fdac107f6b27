"""Measure tam_fast beside its peers, print the tables, keep them as CSV and rewrite those of README.md and docs/.

Each table is measured in fresh processes of its own; one-thread tables are pinned to a core. Every result is checked
against the float64 oracle of the tests before it is timed. What is measured on a GPU has a command of its own,
``python -m bench.gpu``; its results come into the pages by ``--pages-only``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from bench import RESULTS, ROOT, machine, pages, plot
from bench.pages import factor, number
from bench.records import Record, read, write
from bench.tables import TABLES, Part, Table

console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)


class FailedError(RuntimeError):
    """A part of a table could not be measured."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a quick look: small, few samples, nothing is kept")
    # What the two were called when all tables stood in the README still works.
    parser.add_argument("--no-pages", "--no-readme", action="store_true", help="leave README.md and docs/ as they are")
    parser.add_argument(
        "--pages-only", "--readme-only", action="store_true", help="measure nothing; rewrite the pages from the CSVs"
    )
    parser.add_argument("--list", action="store_true", help="name the tables")
    parser.add_argument("--processor", metavar="DIR", help="explain: folder of a Qwen2-VL processor")
    parser.add_argument("--images", metavar="DIR", help="explain: folder of photographs (*.jpg)")
    given = parser.parse_args(arguments)
    for name in given.tables:
        if name not in TABLES:
            parser.error(f"TABLE: expected one of {', '.join(TABLES)}, got {name!r}")
    if bool(given.processor) != bool(given.images):
        parser.error("--processor, --images: expected both or neither, got one")
    for name in ("processor", "images"):
        folder = getattr(given, name)
        if folder and not Path(folder).is_dir():
            parser.error(f"--{name}: expected a folder, got {folder!r}")
    return given


def run(table: Table, part: Part, options: dict[str, Any]) -> dict[str, Any]:
    """Measure a part of a table in a fresh process.

    Raises
    ------
    FailedError
        If it fails: a wrong result among others.
    """
    threads = 1 if part.one_thread else machine.cores()
    environment = {**os.environ, **dict.fromkeys(machine.THREAD_VARIABLES, str(threads)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "records.json"
        command = [sys.executable, "-m", "bench.worker", table.name, part.name, "--threads", str(threads)]
        command += ["--options", json.dumps(options), "--output", str(output)]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode or not output.is_file():
            raise FailedError(f"{table.name}, {part.name}: measuring failed with exit code {done.returncode}")
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def measure(table: Table, options: dict[str, Any], about: dict[str, str]) -> tuple[list[Record], dict[str, str]]:
    """Measure a table: its records, and on what."""
    records: list[Record] = []
    found: dict[str, str] = {}
    pinned = []
    for part in table.parts:
        if part.needs and not options.get(part.needs):
            continue
        if machine.cores() == 1 and replace(part, one_thread=True) in table.parts and not part.one_thread:
            continue  # all the cores are the one that the other part had
        result = run(table, part, options)
        records += [Record(**row) for row in result["records"]]
        found = result["machine"]
        pinned.append(result["pinned"])
    return records, {
        **found,
        "cores": str(machine.cores()),
        **about,
        "pinned": "no" if False in pinned else "yes",
    }


def show(table: Table, records: Sequence[Record]) -> None:
    """Print a table."""
    shown = RichTable(title=table.title, title_justify="left")
    for column in ("case", "", "threads", "p20", "p50", "p80", "unit", "ratio", "p20 to p80", "samples"):
        shown.add_column(column, justify="left" if column in ("case", "", "unit") else "right")
    case = ""
    for row in records:
        if row.case != case and case:
            shown.add_section()
        spread = ""
        if row.ratio_p20 is not None and row.ratio_p80 is not None:
            spread = f"{number(row.ratio_p20)} to {number(row.ratio_p80)}"
        shown.add_row(
            row.case if row.case != case else "",
            row.name,
            str(row.threads),
            *("" if value is None else number(value) for value in (row.p20, row.p50, row.p80)),
            row.unit,
            factor(row.ratio_p50),
            spread,
            f"{row.samples} x {row.inner}" if row.samples > 1 or row.inner > 1 else "1",
        )
        case = row.case
    console.print(shown)
    for note in dict.fromkeys(f"{row.name}: {row.note}" for row in records if row.note):
        console.print(f"  {note}", style="dim")


def draw(folder: Path) -> None:
    """Draw the plot of `linear`, if it was measured."""
    file = folder / "linear.csv"
    if not file.is_file():
        return
    if importlib.util.find_spec("matplotlib") is None:
        console.print("linear.png is left as it is: matplotlib is not installed (extra bench)")
        return
    plot.draw(read(file)[0], folder / "linear.png")


def work(given: argparse.Namespace, folder: Path) -> None:
    """Measure, print and keep."""
    options = {"quick": given.quick, "processor": given.processor, "images": given.images}
    options.update({name: str(Path(options[name]).resolve()) for name in ("processor", "images") if options[name]})
    about = {"commit": machine.commit(), "date": machine.today()}
    for name in given.tables or TABLES:
        began = time.perf_counter()
        records, measured_on = measure(TABLES[name], options, about)
        write(folder / f"{name}.csv", records, measured_on)
        show(TABLES[name], records)
        console.print(f"{machine.line(measured_on)}; {time.perf_counter() - began:.0f} s to measure\n")
    draw(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = parse(arguments)
    if given.list:
        for table in TABLES.values():
            console.print(f"{table.name:10} {table.title}")
        return 0
    try:
        if given.quick:
            # Figures of a quick look are for nobody to keep, but go the whole way.
            with tempfile.TemporaryDirectory() as folder:
                work(given, Path(folder))
                pages.contents(pages.load(Path(folder)))
            return 0
        RESULTS.mkdir(exist_ok=True)
        if given.pages_only:
            if not pages.load(RESULTS):
                raise FailedError(f"--pages-only: expected results in {RESULTS.relative_to(ROOT)}, got none")
            draw(RESULTS)
        else:
            work(given, RESULTS)
        if not given.no_pages:
            written = pages.update(ROOT, pages.load(RESULTS), pages.load_gpu(RESULTS))
            console.print(f"README.md and docs/: {', '.join(written)}")
    except (FailedError, pages.MarkerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
