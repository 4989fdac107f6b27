"""One self-contained HTML page of pictures, texts and the maps between them: :func:`page`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from tam_fast.render.colormaps import BUILT_IN, colormap
from tam_fast.render.jpeg import encode_all

__all__ = ["GENERATOR", "Column", "PageData", "Panel", "Run", "Section", "Still", "Unit", "page"]

GENERATOR = '<meta name="generator" content="tam_fast">'
"""Stands in the first 1,000 bytes of a page and says who wrote it."""

_SCRIPTS = ("maps.js", "paint.js", "film.js", "page.js")
_LEVELS = 10  # steps of a word's underline
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
_VISIBLE_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)} | {13: 0x0A, 0x7F: 0x2421}


@dataclass(frozen=True, eq=False)
class Still:
    """A picture of a page: an image, or a frame of a video.

    Attributes
    ----------
    image : PIL.Image.Image, optional
        None: there is none, and maps are drawn on an empty ground.
    size : (int, int)
        Width and height, for its proportions. Those of `image` where there is one.
    label : str
        What a reader calls it: ``"Image 2"``, ``"1.50 s"``.
    video : int, optional
        The video it belongs to; the stills of a video follow each other in time.
    """

    image: Image.Image | None
    size: tuple[int, int]
    label: str
    video: int | None = None


@dataclass(frozen=True)
class Panel:
    """Where one raster of a column's maps lies.

    Attributes
    ----------
    still : int
        The picture it lies on.
    height, width : int
        Cells down and across.
    box : tuple of 4 floats
        The part of the picture: x0, y0, x1, y1 as fractions of its width and height; may reach beyond 0..1.
    """

    still: int
    height: int
    width: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Unit:
    """What is pointed at: a word, or a token that belongs to none.

    Attributes
    ----------
    text : str
    start, stop : int
        Its tokens are ``start, ..., stop - 1``.
    is_word : bool
        Arrow keys stop at words and marks alike; marks are set back.
    """

    text: str
    start: int
    stop: int
    is_word: bool = True


class Run(NamedTuple):
    """A stretch of text with one place in the context and one unit.

    Attributes
    ----------
    text : str
    place : int, optional
        Its place in what :attr:`Column.relevance` counts; None if it has none.
    unit : int, optional
        The unit that it belongs to.
    """

    text: str
    place: int | None = None
    unit: int | None = None


@dataclass(frozen=True)
class Section:
    """A turn of a conversation, or a part of one.

    Attributes
    ----------
    role : str
        ``"user"``, ``"assistant"``, ``"system"``, ``"thinking"``, or any other name.
    runs : sequence of Run
        In order; their texts together are what is read.
    media : str
        What is shown in this turn, ``"2 images"``.
    """

    role: str
    runs: Sequence[Run]
    media: str = ""


@dataclass(frozen=True, eq=False)
class Column:
    """One explanation on a page.

    Attributes
    ----------
    title : str
        The model, or what tells this column from the others.
    note : str
        A line below: the method, the sizes of the rasters.
    sections : sequence of Section
    units : sequence of Unit
    tokens : sequence of T str
        The tokens' pieces.
    places : sequence of T int
        Each token's place in the context.
    panels : sequence of Panel
        The rasters in the order of the maps' cells.
    levels : (T, M) uint8
        The maps over the panels' cells: a value is ``levels / 255 * peaks``.
    peaks : (T,) float32
        Each map's largest value, in [0, 1].
    relevance : (sum of reach,) uint8
        Row after row what each context token is worth for a token: ``relevance / 255 * reliance``.
    reliance : (T,) float32
        Each row's largest value, in [0, 1].
    reach : sequence of T int
        How many context tokens each row has.
    candidates : sequence of T sequences of (str, float)
        The likeliest tokens of each step with their probabilities.
    flat : sequence of T bool
        Nothing to see: map and relevances are one constant.
    scores : sequence of T float, optional
        How visual each token is, in [0, 1]: 0.5 and more is. None where it is not known.
    """

    title: str
    note: str
    sections: Sequence[Section]
    units: Sequence[Unit]
    tokens: Sequence[str]
    places: Sequence[int]
    panels: Sequence[Panel]
    levels: npt.NDArray[np.uint8]
    peaks: npt.NDArray[np.float32]
    relevance: npt.NDArray[np.uint8]
    reliance: npt.NDArray[np.float32]
    reach: Sequence[int]
    candidates: Sequence[Sequence[tuple[str, float]]]
    flat: Sequence[bool]
    scores: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class PageData:
    """What a page shows.

    Attributes
    ----------
    title : str
        Of the window, and above everything.
    stills : sequence of Still
    columns : sequence of Column
        One, or several that are compared side by side.
    rows : sequence of sequences of (int or None)
        Which units of the columns belong together, one entry a column: pointing at one shows all. Units in no row stand
        alone.
    cmap : str
        The colour map at first; the reader can take another one of :data:`tam_fast.render.BUILT_IN`.
    """

    title: str
    stills: Sequence[Still]
    columns: Sequence[Column]
    rows: Sequence[Sequence[int | None]] = field(default_factory=tuple)
    cmap: str = "inferno"


def page(data: PageData) -> str:
    """Write a page: one HTML text that needs nothing else, and can ask for nothing else.

    Scripts and styles stand in it and are named by their hashes in its Content-Security-Policy, which allows no others
    and no requests. Pictures are encoded anew, without what else their files held. All texts are taken as untrusted.

    Parameters
    ----------
    data : PageData

    Returns
    -------
    str
        Without lone surrogates, so that it can be written as UTF-8.

    Raises
    ------
    ValueError
        If the colour map is unknown, there is no column, or the parts do not agree.
    """
    if not data.columns:
        raise ValueError("columns: expected at least one, got none")
    for number, column in enumerate(data.columns):
        _check(f"columns[{number}]", column, data)
    for row in data.rows:
        _check_row(row, data.columns)
    names = list(dict.fromkeys([data.cmap, *BUILT_IN]))
    tables = {name: _base64(np.ascontiguousarray(colormap(name))) for name in names}
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    document = {
        "stills": [{"size": _size(still), "label": _clean(still.label), "video": still.video} for still in data.stills],
        "columns": [_document(column) for column in data.columns],
        "rows": [list(row) for row in data.rows],
        "cmaps": tables,
    }
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalized
    )
    pictures = encode_all([still.image for still in data.stills])
    return environment.from_string(_asset("template.html.jinja")).render(
        generator=Markup(GENERATOR),
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(document)),
        title=data.title,
        cmaps=names,
        stills=[
            {
                "number": number,
                "source": None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
                "label": still.label,
                "video": still.video,
                "width": _size(still)[0],
                "height": _size(still)[1],
            }
            for number, (still, jpeg) in enumerate(zip(data.stills, pictures, strict=True))
        ],
        columns=[_shown(column, data.stills) for column in data.columns],
    )


def _check(name: str, column: Column, data: PageData) -> None:
    count = len(column.tokens)
    cells = sum(panel.height * panel.width for panel in column.panels)
    if column.levels.dtype != np.uint8 or column.levels.shape != (count, cells):
        got = f"{column.levels.shape} of {column.levels.dtype}"
        raise ValueError(f"{name}.levels: expected ({count}, {cells}) of uint8, got {got}")
    if column.relevance.dtype != np.uint8 or column.relevance.size != sum(column.reach):
        got = f"{column.relevance.size} of {column.relevance.dtype}"
        raise ValueError(f"{name}.relevance: expected {sum(column.reach)} of uint8, got {got}")
    for part in ("places", "peaks", "reliance", "reach", "candidates", "flat", "scores"):
        values = getattr(column, part)
        if values is not None and len(values) != count:
            raise ValueError(f"{name}.{part}: expected one for each of {count} tokens, got {len(values)}")
    for unit in column.units:
        if not 0 <= unit.start < unit.stop <= count:
            raise ValueError(f"{name}.units: expected tokens from 0 to {count}, got {unit.start} to {unit.stop}")
    for panel in column.panels:
        if not 0 <= panel.still < len(data.stills):
            raise ValueError(f"{name}.panels: expected a still from 0 to {len(data.stills) - 1}, got {panel.still}")
    for run in (run for section in column.sections for run in section.runs):
        if run.unit is not None and not 0 <= run.unit < len(column.units):
            raise ValueError(f"{name}.sections: expected a unit from 0 to {len(column.units) - 1}, got {run.unit}")


def _check_row(row: Sequence[int | None], columns: Sequence[Column]) -> None:
    if len(row) != len(columns):
        raise ValueError(f"rows: expected one entry for each of {len(columns)} columns, got {len(row)}")
    for number, (unit, column) in enumerate(zip(row, columns, strict=True)):
        if unit is not None and not 0 <= unit < len(column.units):
            raise ValueError(
                f"rows: expected a unit of columns[{number}] from 0 to {len(column.units) - 1}, got {unit}"
            )


def _document(column: Column) -> dict[str, Any]:
    """Gather what the script reads of a column."""
    return {
        "units": [[_clean(unit.text), unit.start, unit.stop, int(unit.is_word)] for unit in column.units],
        "tokens": [_clean(token) for token in column.tokens],
        "places": list(column.places),
        "panels": [
            {"still": panel.still, "height": panel.height, "width": panel.width, "box": list(panel.box)}
            for panel in column.panels
        ],
        "levels": _base64(column.levels),
        "peaks": _short(column.peaks),
        "relevance": _base64(column.relevance),
        "reliance": _short(column.reliance),
        "reach": list(column.reach),
        "candidates": [[[_clean(text), round(float(p), 6)] for text, p in step] for step in column.candidates],
        "flat": [int(flat) for flat in column.flat],
        "scores": None if column.scores is None else _short(column.scores),
    }


def _shown(column: Column, stills: Sequence[Still]) -> dict[str, Any]:
    """Gather what the template writes of a column."""
    strengths = [float(max(column.peaks[unit.start : unit.stop], default=0.0)) for unit in column.units]
    own = sorted({panel.still for panel in column.panels})
    # Pictures that no raster lies on are shown all the same.
    pictures = own if len(own) == len(stills) or any(stills[n].video is not None for n in own) else range(len(stills))
    return {
        "title": column.title,
        "note": column.note,
        "pictures": [number for number in pictures if stills[number].video is None],
        "videos": sorted({v for number in pictures if (v := stills[number].video) is not None}),
        "sections": [
            {"role": section.role, "media": section.media, "groups": _groups(section.runs)}
            for section in column.sections
        ],
        "units": [
            {"is_word": unit.is_word, "level": round(min(max(strength, 0.0), 1.0) * _LEVELS), "text": unit.text}
            for unit, strength in zip(column.units, strengths, strict=True)
        ],
    }


def _groups(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Put runs of one unit together."""
    groups: list[dict[str, Any]] = []
    for run in runs:
        if run.unit is None or not groups or groups[-1]["unit"] != run.unit:
            groups.append({"unit": run.unit, "runs": []})
        groups[-1]["runs"].append({"text": run.text, "place": run.place})
    return groups


def _size(still: Still) -> tuple[int, int]:
    return still.size if still.image is None else still.image.size


def _short(values: Sequence[float] | npt.NDArray[np.float32]) -> list[float]:
    return [round(float(value), 5) for value in values]


def _base64(values: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _clean(text: object) -> str:
    """Make a text one that HTML and UTF-8 can hold: controls as their pictures, halves of surrogate pairs replaced."""
    shown = str(text).replace("\r\n", "\n").translate(_VISIBLE_CONTROLS)
    return _HALVES.sub("\ufffd", shown)


def _finalized(value: Any) -> Any:
    """Clean every text that the template writes; what is markup already is ours."""
    return _clean(value) if type(value) is str else value


def _json(document: object) -> str:
    """Write JSON that can stand in a script: ASCII, nothing that ends the element or a line."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@lru_cache
def _asset(name: str) -> str:
    return (resources.files("tam_fast.render") / "page" / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
