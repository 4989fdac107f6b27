"""The tables: what each is called, and the parts of it that are measured in processes of their own.

Nothing heavy is imported here; ``bench.tables.NAME.measure(part, threads, options)`` returns a part's records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]
LINEAR_CHANNELS = 256  # C of the table `linear`, whose longest answer is to fit in a small machine


@dataclass(frozen=True)
class Part:
    """One process of a table: on one thread and pinned, or on all the cores there are."""

    name: str
    one_thread: bool = True
    needs: str = ""  # an option without which it is left out


@dataclass(frozen=True)
class Table:
    """A table, its title and its parts."""

    name: str
    title: str
    parts: tuple[Part, ...]


TABLES = {
    table.name: table
    for table in (
        Table("filter", "Rank Gaussian filter, float32, one thread", (Part("all"),)),
        Table("isa", "Rank Gaussian filter by instruction set and dtype, one thread", (Part("all"),)),
        Table("causal", "Causal inference of a whole answer, float32, one thread", (Part("all"),)),
        Table(
            "answer",
            "A whole answer: hidden states in, finished maps out",
            (Part("times"), Part("times", one_thread=False), Part("memory", one_thread=False)),
        ),
        Table("linear", "Cost by length, one thread", (Part("tokens"), Part("positions"), Part("corner"))),
        Table("overhead", "One small map, and importing", (Part("call"), Part("import"))),
        Table("threads", "Threads", (Part("all", one_thread=False),)),
        Table(
            "explain",
            "What explaining adds to generate()",
            (
                Part("embedded", one_thread=False),
                Part("small", one_thread=False, needs="processor"),
                Part("large", one_thread=False, needs="processor"),
                Part("memory generate", one_thread=False, needs="processor"),
                Part("memory explain", one_thread=False, needs="processor"),
                Part("memory stream", one_thread=False, needs="processor"),
            ),
        ),
        Table(
            "methods",
            "What every method of explaining costs",
            (Part("embedded"), Part("small"), Part("large")),
        ),
    )
}


def effort(options: Options, budget: float, min_samples: int = 5) -> dict[str, Any]:
    """How long to measure: seconds a peer and least samples, or next to nothing of both for a quick look."""
    if options.get("quick"):
        return {"budget": budget / 10, "min_samples": 1}
    return {"budget": budget, "min_samples": min_samples}
