"""How often rows were begun and killed their worker: recorded before, so that it is known afterwards."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tam_fast.dataset.durable import append_line, read_lines

__all__ = ["DEATHS", "Attempts", "Span", "journal_name"]

DEATHS = 3
"""Deaths without a finished row between them, until a span of rows is halved, or a row alone given up."""


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` of a shard, counted from its first.

    Attributes
    ----------
    start, stop : int
    deaths : int
        How often they were begun, and neither ended nor got further than before.
    """

    start: int
    stop: int
    deaths: int

    @property
    def given_up(self) -> bool:
        """Whether it is one row that died alone as often as is allowed."""
        return self.stop - self.start == 1 and self.deaths >= DEATHS


def journal_name(number: int) -> str:
    """Name the journal of a shard."""
    return f"shard-{number:05d}.jsonl"


class Attempts:
    """The journal of one shard: a line before each attempt, one behind each batch of rows, one at a stop.

    Parameters
    ----------
    folder : Path
        Where the journals are.
    number : int
        Of the shard.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / journal_name(number)

    def spans(self, rows: int) -> list[Span]:
        """Return the spans that a shard of some rows is to be explained in, with their deaths so far."""
        deaths: dict[tuple[int, int], int] = {}
        furthest: dict[tuple[int, int], int] = {}
        begun: tuple[int, int] | None = None
        for line in read_lines(self._path):
            if "begin" in line:
                begun = (int(line["begin"][0]), int(line["begin"][1]))
                deaths[begun] = deaths.get(begun, 0) + 1
            elif begun is not None and "reached" in line:
                # Rows that were finished in an earlier attempt too are no news: the same row kills again.
                if line["reached"] > furthest.get(begun, 0):
                    furthest[begun], deaths[begun] = line["reached"], 1
            elif begun is not None and "stopped" in line:
                deaths[begun] -= 1
                begun = None
        return self._cut(0, rows, deaths)

    def _cut(self, start: int, stop: int, deaths: dict[tuple[int, int], int]) -> list[Span]:
        count = deaths.get((start, stop), 0)
        if count < DEATHS or stop - start == 1:
            return [Span(start, stop, count)]
        middle = (start + stop) // 2
        return [*self._cut(start, middle, deaths), *self._cut(middle, stop, deaths)]

    def begin(self, span: Span) -> None:
        """Record that a span is begun."""
        append_line(self._path, {"begin": [span.start, span.stop]})

    def reached(self, rows: int) -> None:
        """Record that the span that was begun got through so many of its rows."""
        append_line(self._path, {"reached": rows})

    def stopped(self) -> None:
        """Record that the worker stopped by itself.

        Where not even that can be written, the journal goes: deaths are forgotten, but none is made up.
        """
        try:
            append_line(self._path, {"stopped": True})
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def retry(self) -> None:
        """Record that a part is there, whose error rows are explained anew."""
        append_line(self._path, {"retry": True})

    def is_of_retry(self) -> bool:
        """Whether that was recorded."""
        return any("retry" in line for line in read_lines(self._path))

    def forget(self) -> None:
        """Remove the journal, once the shard's part is there."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
