"""What was measured, as rows, and the CSV files that keep them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.measure import Timing

# Units of time in seconds.
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns a pixel": 1e-9}
_OPTIONAL = ("p20", "p80", "ratio_p20", "ratio_p50", "ratio_p80")


@dataclass(frozen=True)
class Record:
    """One line of a table: a way, in a case, on some threads; values are in `unit`, ratios are to the case's base."""

    case: str
    name: str
    unit: str
    threads: int
    p20: float | None
    p50: float
    p80: float | None
    ratio_p20: float | None = None
    ratio_p50: float | None = None
    ratio_p80: float | None = None
    samples: int = 1
    inner: int = 1
    note: str = ""


def record(case: str, timing: Timing, unit: str, threads: int) -> Record:
    """Make a row of a timing, in the unit."""
    p20, p50, p80 = (value / UNITS[unit] for value in timing.seconds)
    return Record(
        case, timing.name, unit, threads, p20, p50, p80, *timing.ratio, timing.samples, timing.inner, timing.note
    )


def single(case: str, name: str, unit: str, threads: int, value: float, note: str = "") -> Record:
    """Make a row of a single value."""
    return Record(case, name, unit, threads, None, value, None, note=note)


def write(path: Path, records: Iterable[Record], machine: dict[str, str]) -> None:
    """Write a table: what it was measured on as comments, then one row a record."""
    with path.open("w", newline="", encoding="utf-8") as file:
        for key, value in machine.items():
            file.write(f"# {key}: {value}\n")
        out = csv.DictWriter(file, [field.name for field in fields(Record)], lineterminator="\n")
        out.writeheader()
        for row in records:
            values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in asdict(row).items()}
            out.writerow({key: "" if value is None else value for key, value in values.items()})


def read(path: Path) -> tuple[list[Record], dict[str, str]]:
    """Read a table: its records, and what they were measured on.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing or not known.
    """
    machine: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = file.read().splitlines()
    while lines and lines[0].startswith("# "):
        key, _, value = lines.pop(0)[2:].partition(": ")
        machine[key] = value
    rows = csv.DictReader(lines)
    names = [field.name for field in fields(Record)]
    if rows.fieldnames is None or list(rows.fieldnames) != names:
        raise ValueError(f"{path.name}: expected the columns {', '.join(names)}, got {rows.fieldnames}")
    return [_parse(row) for row in rows], machine


def _parse(row: dict[str, str]) -> Record:
    floats = {name: float(row[name]) if row[name] else None for name in _OPTIONAL}
    whole = {name: int(row[name]) for name in ("threads", "samples", "inner")}
    text = {name: row[name] for name in ("case", "name", "unit", "note")}
    return Record(p50=float(row["p50"]), **floats, **whole, **text)


def find(records: Sequence[Record], case: str, name: str, threads: int | None = None) -> Record | None:
    """Look a row up; None if it was not measured."""
    for row in records:
        if (row.case, row.name) == (case, name) and threads in (None, row.threads):
            return row
    return None
