"""How far something is, for people who wait: :func:`progress`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Progress", "progress", "reading"]


@dataclass(frozen=True)
class Progress:
    """Tells people how much was done; made by :func:`progress`.

    Attributes
    ----------
    advance : callable
        Takes how many more are done, 1 if not given.
    """

    advance: Callable[..., None]


@contextmanager
def progress(total: int | None, what: str, show: bool = True) -> Iterator[Progress]:
    """Show how far something is, inside a ``with`` block.

    A bar of rich on a terminal and in a notebook with ipywidgets; a line that is written over in one without; nothing
    where the standard error stream is neither, so that logs stay free of it.

    ::

        with progress(len(files), "explaining") as shown:
            for file in files:
                ...
                shown.advance()

    Parameters
    ----------
    total : int or None
        How many there are; None if that is not known.
    what : str
        What is being done.
    show : bool
        False shows nothing anywhere.

    Yields
    ------
    Progress
    """
    in_notebook = show and _in_notebook()
    if not show or not (in_notebook or (sys.stderr is not None and sys.stderr.isatty())):
        yield Progress(lambda *_: None)
    elif in_notebook and importlib.util.find_spec("ipywidgets") is None:
        line = _Line(total, what)
        try:
            yield Progress(line.advance)
        finally:
            line.close()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # In a notebook rich displays what goes to the standard output.
        with Bar(*columns, console=Console(stderr=not in_notebook)) as bar:
            task = bar.add_task(what, total=total)
            yield Progress(lambda count=1: bar.advance(task, count))


class _Line:
    """A line of text that is written over, for notebooks without widgets."""

    def __init__(self, total: int | None, what: str) -> None:
        self._total, self._what, self._done = total, what, 0
        self.advance(0)

    def advance(self, count: int = 1) -> None:
        self._done += count
        of = "" if self._total is None else f"/{self._total}"
        print(f"\r{self._what} {self._done}{of}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    """Whether this runs in a kernel that displays things: Jupyter, Colab, Databricks."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


@contextmanager
def reading(what: str, show: bool = True) -> Iterator[Callable[[int, int], object]]:
    """Show how far reading is, for readers that tell how much of how much they have read.

    Parameters
    ----------
    what : str
    show : bool

    Yields
    ------
    callable
        Takes how many were read and how many there are.
    """
    with progress(None, what, show) as shown:
        before = 0

        def tell(done: int, _total: int) -> None:
            nonlocal before
            shown.advance(done - before if done > before else done)
            before = done

        yield tell
