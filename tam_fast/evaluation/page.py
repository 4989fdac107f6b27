"""Results as one HTML page: the table, curves, and the worst and best items to click. No script, nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tam_fast._version import __version__
from tam_fast.evaluation.gallery import Shown, gathered
from tam_fast.evaluation.tables import best, figure_of, shown
from tam_fast.render.overlay import Raster, overlay

if TYPE_CHECKING:
    from PIL.Image import Image

    from tam_fast.evaluation.results import Results

__all__ = ["page"]

_TEMPLATE = "page.html.jinja"
_SIDE = 176  # pixels of the longer side of a small picture
_ITEMS = 16
_WORDS = 3
_KEEP = 3
_POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


@dataclass
class _Tile:
    """A small picture: the overlay of a word by a method, and its value."""

    method: str
    value: str
    picture: str


@dataclass
class _Item:
    anchor: str
    name: str
    text: str
    picture: str
    words: list[tuple[str, list[_Tile]]] = field(default_factory=list)


@dataclass
class _Row:
    """One method's row of the table."""

    method: str
    cells: list[dict[str, Any]]
    milliseconds: str


def page(results: Results, *, title: str = "Evaluation") -> str:
    """Make the page, self-contained: pictures are data URLs, styles are inline, and nothing else is allowed.

    Parameters
    ----------
    results : Results
    title : str

    Returns
    -------
    str
        HTML.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    pictures = gathered(results.folders, _KEEP)
    chosen = _choose(pictures, results.methods)
    anchors = {one.item: f"i{number}" for number, one in enumerate(chosen, 1)}
    figures = [figure_of(name) for name in results.figures]
    return environment.get_template(_TEMPLATE).render(
        title=title,
        policy=_POLICY.format(digest),
        # Styles are ours, and hashed as they stand; markup from elsewhere is escaped.
        style=_markup(style),
        version=__version__,
        results=results,
        facts=_facts(results),
        figures=figures,
        rows=[_row(results, method) for method in results.methods],
        answers=[(figure_of(cell.figure).title, _interval(cell)) for cell in results.answers],
        curves=_curves(results),
        judged=figure_of(chosen[0].figure).title if chosen else "",
        shelves=_shelves(chosen, anchors, results.methods),
        items=[_item(one, anchors[one.item], results.methods) for one in chosen],
    )


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _facts(results: Results) -> list[tuple[str, str]]:
    """List what the page says of how figures were made."""
    settings = results.settings
    data = settings.get("data", {})
    facts = [
        ("items", f"{results.items:,}"),
        ("data", str(data.get("name", ""))),
        ("model", str(data.get("model", ""))),
        ("scale", str(settings.get("scale", ""))),
        ("compat", str(settings.get("options", {}).get("compat") or "")),
        ("compared with", results.reference),
        ("resamples", f"{results.resamples:,}"),
    ]
    return [(name, value) for name, value in facts if value]


def _interval(cell: Any) -> str:
    figure = figure_of(cell.figure)
    return f"{shown(cell.value, figure)} [{shown(cell.low, figure)}, {shown(cell.high, figure)}]"


def _row(results: Results, method: str) -> _Row:
    cells: list[dict[str, Any]] = []
    for name in results.figures:
        cell, figure = results.cell(method, name), figure_of(name)
        if cell is None:
            cells.append({"text": "–", "range": "", "best": False, "star": "", "hint": ""})
            continue
        star = ""
        if math.isfinite(cell.p) and cell.p < 0.05 and method != results.reference:
            better = (cell.difference > 0) == (figure.better == "high")
            star = "" if not figure.better else "better" if better else "worse"
        hint = f"{cell.n:,} values of {cell.images:,} images; by image {shown(cell.per_image, figure)}"
        if math.isfinite(cell.difference):
            change = [
                shown(value, figure, True) for value in (cell.difference, cell.difference_low, cell.difference_high)
            ]
            hint += f"; to {results.reference} {change[0]} [{change[1]}, {change[2]}]"
            hint += f", p = {cell.p:.2g}" if math.isfinite(cell.p) else ""
        cells.append(
            {
                "text": shown(cell.value, figure),
                "range": f"{shown(cell.low, figure)}–{shown(cell.high, figure)}" if math.isfinite(cell.low) else "",
                "best": method in best(results, name),
                "star": star,
                "hint": hint,
            }
        )
    spent = results.milliseconds.get(method)
    return _Row(method, cells, "–" if spent is None else f"{spent:.3g}" if spent < 1000 else f"{spent:,.0f}")


def _curves(results: Results) -> dict[str, str]:
    """Draw the curves for both themes, as data URLs; nothing without curves, or without matplotlib."""
    from tam_fast.evaluation.plots import plot_curves

    if not any(curve.figure in ("insertion", "deletion") for curve in results.curves):
        return {}
    return {
        theme: _url(plot_curves(results.curves, theme=theme, transparent=True), "png") for theme in ("light", "dark")
    }


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


# Items ---------------------------------------------------------------------------------------------------------------


def _ends(pictures: Sequence[Shown], method: str) -> tuple[list[Shown], list[Shown]]:
    """Return the worst and the best items of a method; none is both."""
    order = sorted((one for one in pictures if method in one.scores), key=lambda one: (one.scores[method], one.index))
    worst = order[: min(_KEEP, (len(order) + 1) // 2)]
    return worst, [one for one in reversed(order[-_KEEP:]) if one not in worst]


def _choose(pictures: Sequence[Shown], methods: Sequence[str]) -> list[Shown]:
    """Choose which items are shown: the ends of each method's order, one of each at a time, until there are 16."""
    ends = {method: _ends(pictures, method) for method in methods}
    found: dict[str, Shown] = {}
    for rank in range(_KEEP):
        for method in methods:
            for side in ends[method]:
                if rank < len(side) and len(found) < _ITEMS:
                    found.setdefault(side[rank].item, side[rank])
    return sorted(found.values(), key=lambda one: one.index)


def _shelves(
    chosen: Sequence[Shown], anchors: Mapping[str, str], methods: Sequence[str]
) -> list[tuple[str, list[tuple[str, list[tuple[str, _Tile]]]]]]:
    """Lay out the worst and the best items of each method, as links to the items."""
    shelves = []
    for method in methods:
        sides = []
        for name, side in zip(("worst", "best"), _ends(chosen, method), strict=True):
            tiles = []
            for one in side:
                places = one.values[method]
                if places:
                    place = (min if name == "worst" else max)(places, key=lambda key: places[key])
                    tiles.append((anchors[one.item], _tile(one, method, place)))
            if tiles:
                sides.append((name, tiles))
        if sides:
            shelves.append((method, sides))
    return shelves


def _item(one: Shown, anchor: str, methods: Sequence[str]) -> _Item:
    made = _Item(anchor, one.item, one.text, _jpeg(_small(one.picture())))
    lowest = {
        str(word["place"]): min(
            (values.get(str(word["place"]), math.inf) for values in one.values.values()), default=0.0
        )
        for word in one.words
    }
    words = sorted(one.words, key=lambda word: lowest[str(word["place"])])[:_WORDS]
    for word in sorted(words, key=lambda word: int(word["place"])):
        place = str(word["place"])
        tiles = [_tile(one, method, place) for method in methods if place in one.maps.get(method, {})]
        made.words.append((str(word["text"]), tiles))
    return made


def _tile(one: Shown, method: str, place: str) -> _Tile:
    x0, y0, x1, y1 = one.box
    picture = overlay(_small(one.picture()), [Raster(one.raster(method, place), (x0, y0, x1, y1))])
    value = one.values.get(method, {}).get(place)
    return _Tile(method, "" if value is None else f"{100 * value:.0f}", _jpeg(picture))


def _small(picture: Image) -> Image:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    return small


def _jpeg(picture: Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=72)
    return _url(out.getvalue(), "jpeg")
