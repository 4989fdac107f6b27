"""The plot of the table ``linear``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.records import Record, find
from bench.tables import LINEAR_CHANNELS

NAMES = ("total", "scores", "after the scores")
COLOURS = ("#1b1b1b", "#2a78b5", "#d1702a")
MARKS = ("o", "s", "^")


def slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Exponent of the growth: slope of a straight line through the upper half of the points, both axes logarithmic."""
    upper = max(2, (len(sizes) + 1) // 2)
    return float(np.polyfit(np.log(sizes[-upper:]), np.log(times[-upper:]), 1)[0])


def draw(records: Sequence[Record], file: Path) -> None:
    """Time of an answer by tokens and by positions, with the slope of each part; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row.case for row in records if not row.case.endswith("once")))
    sizes = {case: (int(case.split()[0]), int(case.split()[2])) for case in cases}
    grid = [case for case in cases if sizes[case][1] == 1296]
    video = [case for case in cases if sizes[case][1] != 1296]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (
        (axes[0], grid, 0, "generated tokens (36x36 positions)"),
        (axes[1], video, 1, "visual positions (frames of 24x32; 64 tokens)"),
    )
    for axis, group, which, label in panels:
        x = [sizes[case][which] for case in group]
        for name, colour, mark in zip(NAMES, COLOURS, MARKS, strict=True):
            found = [find(records, case, name) for case in group]
            y = [row.p50 for row in found if row is not None]
            title = f"{name}, slope {slope(x, y):.2f}" if len(y) > 2 else name
            axis.plot(x, y, color=colour, marker=mark, label=title, linewidth=1.5, markersize=5)
            if name == NAMES[0] and y:
                axis.plot(x, [y[0] * size / x[0] for size in x], color="#999999", linestyle=":", label="linear")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="ms an answer")
        axis.set_xticks(x, [f"{size:,}" for size in x], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"tam_fast.activation_maps, one thread, C = {LINEAR_CHANNELS} (slopes of the upper half)", fontsize=11
    )
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
