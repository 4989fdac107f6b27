"""What rows say of a whole data set: pooled and per-image means, intervals, differences: :class:`Results`."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tam_fast.evaluation.measures import FIGURES
from tam_fast.evaluation.rows import Row, merge, read_rows
from tam_fast.evaluation.statistics import holm, interval, resampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tam_fast.evaluation.run import Counts

__all__ = ["Cell", "Curve", "Results", "read_results"]

_EXAMPLES = 5


@dataclass(frozen=True)
class Cell:
    """One figure of one method over the data set.

    Attributes
    ----------
    method, figure : str
    value : float
        Pooled: the mean over all words (tokens, answers) of all images.
    low, high : float
        95 % percentile interval of a bootstrap over images.
    per_image : float
        The mean over images of each image's mean.
    n, images : int
        How many values, of how many images.
    difference, difference_low, difference_high : float
        To the reference, over the images that both have; NaN for the reference itself.
    p : float
        Two-sided, of no difference, by the same bootstrap; corrected by Holm for the methods of the figure.
    """

    method: str
    figure: str
    value: float
    low: float
    high: float
    per_image: float
    n: int
    images: int
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Curve:
    """The mean of a method's curves over images.

    Attributes
    ----------
    method, figure : str
    mean, error : list of float
        At equal steps of the share of the image, 0 to 1; the standard error of the mean.
    images : int
    """

    method: str
    figure: str
    mean: list[float]
    error: list[float]
    images: int


@dataclass
class Results:
    """What an evaluation found.

    Attributes
    ----------
    methods, figures : list of str
        In the order of tables.
    cells : list of Cell
    curves : list of Curve
    answers : list of Cell
        Figures of the answers alone, such as ROUGE-L.
    milliseconds : dict of str to float
        A token, by method, beyond the pass over prompt and answer that all have in common.
    items : int
        Of which there are rows.
    failed : int
        That ended in an error as a whole.
    errors, nothing : dict of str to int
        How many units (method and measure of an item) ended in which error, or had nothing to measure.
    examples : list of str
        Items and their errors, the first few.
    reference : str
    settings : dict
        What the rows were made with.
    resamples, seed : int
    folders : list of str
    counts : Counts, optional
        What the run that made this did.
    """

    methods: list[str]
    figures: list[str]
    cells: list[Cell]
    curves: list[Curve]
    answers: list[Cell]
    milliseconds: dict[str, float]
    items: int
    failed: int
    errors: dict[str, int]
    nothing: dict[str, int]
    examples: list[str]
    reference: str
    settings: dict[str, Any]
    resamples: int
    seed: int
    folders: list[str]
    counts: Counts | None = None

    def cell(self, method: str, figure: str) -> Cell | None:
        """Return a figure of a method; None if there is none."""
        return next((cell for cell in self.cells if (cell.method, cell.figure) == (method, figure)), None)

    @property
    def worked(self) -> bool:
        """Whether anything was measured at all."""
        return bool(self.cells or self.answers)

    def markdown(self, figures: Sequence[str] | None = None, intervals: bool = True) -> str:
        """Return the table in Markdown."""
        from tam_fast.evaluation.tables import markdown

        return markdown(self, figures, intervals)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for :func:`json.dump`; what is no number is None."""
        found: dict[str, Any] = _without_nan(asdict(self))
        return found

    def write(self, folder: str | os.PathLike[str], merged: bool = True) -> list[Path]:
        """Write tables, page and plots to a folder; with `merged` all rows as ``rows.parquet``, too.

        Returns
        -------
        list of Path
        """
        from tam_fast.evaluation.page import page
        from tam_fast.evaluation.plots import plot_curves
        from tam_fast.evaluation.tables import csv, latex, markdown

        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        texts = {
            "table.md": markdown(self),
            "table.tex": latex(self),
            "table.csv": csv(self),
            "results.json": json.dumps(self.as_json(), indent=1) + "\n",
            "report.html": page(self),
        }
        files = {name: text.encode("utf-8") for name, text in texts.items()}
        if any(curve.figure in ("insertion", "deletion") for curve in self.curves):
            files |= {f"insertion_deletion.{ending}": plot_curves(self.curves, ending) for ending in ("png", "svg")}
        written = [_put(root / name, data) for name, data in files.items()]
        if merged:
            written.append(merge(self.folders, root))
        return written


def _put(path: Path, data: bytes) -> Path:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# From rows -----------------------------------------------------------------------------------------------------------


@dataclass
class _Totals:
    """Sums and counts of one column, an item each."""

    sums: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, place: int, row: Row) -> None:
        self.sums[place] = self.sums.get(place, 0.0) + row.value * row.n
        self.counts[place] = self.counts.get(place, 0) + row.n


@dataclass
class _Curves:
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: int = 0


class _Gathered:
    """Rows, added up as they are read; what is kept grows with items x figures x methods, not with words."""

    def __init__(self, official: bool) -> None:
        self.official = official  # there one value that is no number makes a mean that is none
        self.items: list[tuple[int, str]] = []
        self.columns: dict[tuple[str, str], _Totals] = {}
        self.curves: dict[tuple[str, str], _Curves] = {}
        self.seconds: dict[str, list[float]] = {}
        self.failed = 0
        self.errors: Counter[str] = Counter()
        self.nothing: Counter[str] = Counter()
        self.examples: list[tuple[int, str]] = []

    def add(self, rows: Sequence[Row]) -> None:
        place = len(self.items)
        self.items.append((rows[0].index, rows[0].item))
        for row in rows:
            if row.status == "error":
                self._error(row)
            elif row.status == "none":
                self.nothing[f"{row.measure}: {row.error}"] += 1
            elif row.measure == "cost":
                if row.figure == "seconds":
                    spent = self.seconds.setdefault(row.method, [0.0, 0.0])
                    spent[0] += row.value
                    spent[1] += row.n
            elif math.isfinite(row.value) or self.official:
                self.columns.setdefault((row.method, row.figure), _Totals()).add(place, row)
                if row.points:
                    self._curve(row)
            else:
                self.nothing[f"{row.measure}: {row.figure} is no number"] += 1

    def _error(self, row: Row) -> None:
        self.failed += not row.measure
        where = " ".join(part for part in (row.method, row.measure) if part)
        self.errors[f"{where}: {row.error}" if where else row.error] += 1
        self.examples.append((row.index, f"{row.item}: {f'{where}: ' if where else ''}{row.error}"))
        self.examples = sorted(self.examples)[:_EXAMPLES]

    def _curve(self, row: Row) -> None:
        points = np.asarray(row.points, dtype=np.float64)
        known = self.curves.setdefault((row.method, row.figure), _Curves(np.zeros(len(points)), np.zeros(len(points))))
        if len(points) == len(known.total):
            known.total += points
            known.squares += points**2
            known.count += 1


def read_results(
    folders: Iterable[str | os.PathLike[str]],
    *,
    reference: str = "cam",
    resamples: int = 2000,
    seed: int = 0,
) -> Results:
    """Read the rows of one or several folders (shards), and make of them what tables show.

    Parameters
    ----------
    folders : iterable of path
    reference : str
        The method that others are compared with.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Results

    Raises
    ------
    ValueError
        If a folder has no rows, or folders were made with different settings.
    """
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    places = [Path(folder) for folder in folders]
    settings = _settings(places)
    gathered = _Gathered(settings.get("options", {}).get("compat") == "official")
    for rows in read_rows(places):
        gathered.add(rows)
    # In the order of the data set, so that shards and resumed runs give what one run gives.
    order = sorted(range(len(gathered.items)), key=lambda place: gathered.items[place])
    cells, answers = _cells(gathered, order, reference, resamples, seed)
    methods = sorted({cell.method for cell in cells}, key=_method_place)
    known = list(FIGURES)
    figures = sorted(
        {cell.figure for cell in cells}, key=lambda name: (known.index(name) if name in known else len(known), name)
    )
    cells.sort(key=lambda cell: (methods.index(cell.method), figures.index(cell.figure)))
    curves = [
        Curve(method, figure, *_mean_and_error(found), found.count)
        for (method, figure), found in sorted(gathered.curves.items(), key=lambda item: _method_place(item[0][0]))
        if found.count
    ]
    return Results(
        methods=methods,
        figures=figures,
        cells=cells,
        curves=curves,
        answers=answers,
        milliseconds={
            method: 1000 * spent / count
            for method, (spent, count) in sorted(gathered.seconds.items(), key=lambda item: _method_place(item[0]))
            if count
        },
        items=len(gathered.items),
        failed=gathered.failed,
        errors=dict(sorted(gathered.errors.items(), key=lambda item: (-item[1], item[0]))),
        nothing=dict(sorted(gathered.nothing.items(), key=lambda item: (-item[1], item[0]))),
        examples=[text for _, text in gathered.examples],
        reference=reference,
        settings=settings,
        resamples=resamples,
        seed=seed,
        folders=[str(place) for place in places],
    )


def _settings(folders: Sequence[Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in folders:
        path = folder / "evaluation.json"
        if not path.is_file():
            continue
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        for name in found:
            if name != "method_options" and settings.get(name) != found[name]:
                raise ValueError(
                    f"output: expected folders that were made with the same settings, got {name} "
                    f"{settings.get(name)} in {folder} and {found[name]} before it"
                )
        found = {
            **settings,
            "method_options": {**found.get("method_options", {}), **settings.get("method_options", {})},
        }
    return found


def _method_place(name: str) -> tuple[int, int, str]:
    """TAM first, then the registry's order, maps that know nothing last; a method's refinements behind it."""
    from tam_fast.evaluation.baselines import BASELINES
    from tam_fast.methods.registry import METHODS

    if name in BASELINES:
        return 2, list(BASELINES).index(name), name
    order = list(METHODS)
    base = name.partition("@")[0].partition("+")[0]
    return 0 if name == "tam" else 1, order.index(base) if base in order else len(order), name


def _mean_and_error(found: _Curves) -> tuple[list[float], list[float]]:
    mean = found.total / found.count
    spread = np.maximum(found.squares / found.count - mean**2, 0.0)
    error = np.sqrt(spread / max(found.count - 1, 1))
    return mean.tolist(), error.tolist()


# Statistics ----------------------------------------------------------------------------------------------------------

_Column = tuple[str, str]


def _cells(
    gathered: _Gathered, order: Sequence[int], reference: str, resamples: int, seed: int
) -> tuple[list[Cell], list[Cell]]:
    names = sorted(gathered.columns)
    if not names:
        return [], []
    sums, counts = (np.zeros((len(order), len(names))) for _ in range(2))
    for column, name in enumerate(names):
        totals = gathered.columns[name]
        sums[:, column] = [totals.sums.get(place, 0.0) for place in order]
        counts[:, column] = [totals.counts.get(place, 0) for place in order]
    # Of each column again with the images alone that the reference has, too, and of the reference with the column's.
    at = {name: column for column, name in enumerate(names)}
    against = [at.get((reference, figure)) for _, figure in names]
    both = np.stack(
        [
            (counts[:, column] > 0) & (counts[:, other] > 0) if other is not None else np.zeros(len(order), dtype=bool)
            for column, other in enumerate(against)
        ],
        axis=1,
    )
    others = [column if other is None else other for column, other in enumerate(against)]
    parts = [(sums, counts), (sums * both, counts * both), (sums[:, others] * both, counts[:, others] * both)]
    whole = [_ratio(part[0].sum(axis=0), part[1].sum(axis=0)) for part in parts]
    # The same seed draws the same images for all columns.
    draws = [resampled(*part, resamples=resamples, seed=seed) for part in parts]
    per_image = _ratio((_ratio(sums, counts) * (counts > 0)).sum(axis=0, where=counts > 0), (counts > 0).sum(axis=0))
    table = {name: [draw[:, column] for draw in draws] for name, column in at.items()}
    values = {name: [float(part[column]) for part in whole] for name, column in at.items()}
    made: dict[_Column, tuple[float, int, int]] = {
        name: (float(per_image[column]), int(counts[:, column].sum()), int((counts[:, column] > 0).sum()))
        for name, column in at.items()
    }
    _add_f1(table, values, made)
    found: dict[str, list[Cell]] = {}
    for (method, figure), (mean, number, images) in made.items():
        drawn, value = table[method, figure], values[method, figure]
        low, high = _interval(drawn[0])
        cell: dict[str, Any] = {"value": value[0], "low": low, "high": high, "per_image": mean, "n": number}
        if method and method != reference and math.isfinite(value[1]):
            change = drawn[1] - drawn[2]
            below, above = _interval(change)
            cell |= {
                "difference": value[1] - value[2],
                "difference_low": below,
                "difference_high": above,
                "p": _p_value(change),
            }
        found.setdefault(figure, []).append(Cell(method, figure, images=images, **cell))
    corrected = [cell for cells in found.values() for cell in _corrected(cells)]
    return [cell for cell in corrected if cell.method], [cell for cell in corrected if not cell.method]


def _ratio(sums: Any, counts: Any) -> NDArray[np.float64]:
    known = np.asarray(counts) > 0
    found: NDArray[np.float64] = np.where(known, np.asarray(sums) / np.where(known, counts, 1), np.nan)
    return found


def _add_f1(
    table: dict[_Column, list[NDArray[np.float64]]],
    values: dict[_Column, list[float]],
    made: dict[_Column, tuple[float, int, int]],
) -> None:
    """Add F1-IoU, the harmonic mean of the two pooled means, where both are."""
    for method in {method for method, _ in table}:
        pair = (method, "obj_iou"), (method, "func_iou")
        if not all(name in table for name in pair):
            continue
        name = (method, "f1_iou")
        table[name] = [_harmonic(one, two) for one, two in zip(table[pair[0]], table[pair[1]], strict=True)]
        values[name] = [float(_harmonic(one, two)) for one, two in zip(values[pair[0]], values[pair[1]], strict=True)]
        mean = float(_harmonic(made[pair[0]][0], made[pair[1]][0]))
        made[name] = (mean, made[pair[0]][1] + made[pair[1]][1], max(made[pair[0]][2], made[pair[1]][2]))


def _harmonic(one: Any, two: Any) -> NDArray[np.float64]:
    total = np.asarray(one) + np.asarray(two)
    found: NDArray[np.float64] = np.where(total > 0, 2 * one * two / np.where(total > 0, total, 1.0), total)
    return found


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = interval(draws[:, None])
    return float(low[0]), float(high[0])


def _p_value(change: NDArray[np.float64]) -> float:
    """Two-sided: how often the resampled difference is not on the side of most of them."""
    known = change[np.isfinite(change)]
    if not known.size:
        return math.nan
    side = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (known.size + 1))


def _corrected(cells: Sequence[Cell]) -> list[Cell]:
    """Correct the p-values of one figure's methods; maps that know nothing are no candidates and do not count."""
    from dataclasses import replace

    from tam_fast.evaluation.baselines import BASELINES

    family = [cell for cell in cells if math.isfinite(cell.p) and cell.method not in BASELINES]
    told: Mapping[str, float] = dict(
        zip((cell.method for cell in family), holm([cell.p for cell in family]), strict=True)
    )
    return [replace(cell, p=float(told.get(cell.method, cell.p))) for cell in cells]
