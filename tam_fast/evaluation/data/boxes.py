"""Referring expressions with boxes, as RefCOCO has them, in JSON or JSON lines: :class:`Expressions`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tam_fast.evaluation.data.files import inside, read_json, read_text
from tam_fast.evaluation.data.item import Item, broken
from tam_fast.evaluation.data.prompts import prompt_of

__all__ = ["FORMATS", "Expressions", "read_box"]

FORMATS = ("xywh", "xyxy")
"""What a box's four numbers are: corner and size, as COCO has it, or two corners."""

_LINES = (".jsonl", ".ndjson")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "file_name", "img", "image_path"),
    "expression": ("expression", "sentence", "phrase", "caption", "text"),
    "box": ("bbox", "box"),
    "id": ("id", "ref_id", "sent_id"),
    "prompt": ("prompt", "question"),
    "answer": ("answer",),
    "category": ("category", "category_name"),
}
_TARGET = 1


def read_box(value: Any, form: str) -> tuple[float, float, float, float]:
    """Bring a box to x0, y0, x1, y1.

    Raises
    ------
    ValueError
        If it is not of four finite numbers, or has no area.
    """
    if form not in FORMATS:
        raise ValueError(f"box_format: expected {' or '.join(FORMATS)}, got {form!r}")
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        x0, y0, x1, y1 = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box: expected four numbers, got {str(value)[:80]}") from error
    if form == "xywh":
        x1, y1 = x0 + x1, y0 + y1
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise ValueError(f"box: expected {form} of some area, got {str(value)[:80]}")
    return x0, y0, x1, y1


class Expressions:
    """Rows with an image, an expression and the box of what it names.

    The expression is the given answer, so that its words' maps can be compared with the box; it is the name of the
    target's label, 1, too, and so is the row's category where it has one. With ``as_answer=False`` the model answers by
    itself.

    Parameters
    ----------
    path : Path
        A list of objects in JSON, or an object a line. Images are relative to its folder. Pickles (RefCOCO's
        ``refs.p``) are never opened.
    prompt : str, optional
        What is asked; a row's own prompt goes before it.
    box_format : "xywh" or "xyxy", optional
        By default ``bbox`` is x, y, width, height and ``box`` two corners. A box that does not lie within its image is
        that item's error.
    images : str, optional
        The folder of the images, in place of the file's.
    as_answer : bool
    allow_outside : bool
        Whether images may lie outside of the folder.
    **columns
        Names of the entries for ``image``, ``expression``, ``box``, ``id``, ``prompt``, ``answer`` and ``category``,
        where they are others than the usual.

    Raises
    ------
    ValueError, FileNotFoundError
        If the file is none of these, or an argument is unknown.
    """

    name = "boxes"

    def __init__(
        self,
        path: Path,
        *,
        prompt: str | None = None,
        compat: str | None = None,
        box_format: str | None = None,
        images: str | None = None,
        as_answer: bool = True,
        allow_outside: bool = False,
        **columns: str,
    ) -> None:
        unknown = sorted(set(columns) - set(_NAMES))
        if unknown:
            raise ValueError(f"columns: expected {', '.join(_NAMES)}, got {', '.join(unknown)}")
        if box_format not in (None, *FORMATS):
            raise ValueError(f"box_format: expected {' or '.join(FORMATS)}, got {box_format!r}")
        self._path, self._prompt, self._form = Path(path), prompt_of(prompt), box_format
        self._compat, self._as_answer, self._allow_outside = compat, as_answer, allow_outside
        self._root = self._path.parent if images is None else Path(images)
        self._columns = {name: (columns[name],) if name in columns else usual for name, usual in _NAMES.items()}
        text = read_text(self._path)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        if self._path.suffix.lower() in _LINES:
            self._rows: list[Any] = [line for line in text.split("\n") if line.strip()]
        else:
            found = read_json(self._path)
            if isinstance(found, dict):
                lists = [value for value in found.values() if isinstance(value, list)]
                found = lists[0] if len(lists) == 1 else found
            if not isinstance(found, list):
                raise ValueError(f"data: expected a list of rows in {path}, got {type(found).__name__}")
            self._rows = found

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether it is a file of JSON."""
        return path.is_file() and path.suffix.lower() in (".json", *_LINES)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Item]:
        """Yield an item a row; its id is the row's own if all rows have different ones, else its number."""
        ids = self._ids()
        for number, raw in enumerate(self._rows):
            yield self._item_or_error(ids[number], raw)

    def _item_or_error(self, id: str, raw: Any) -> Item:
        try:
            return self._item(id, _parsed(raw))
        except ValueError as error:
            return broken(id, error)

    def _ids(self) -> Sequence[str]:
        own = []
        for raw in self._rows:
            try:
                found = self._cell(_parsed(raw), "id")
            except ValueError:
                found = None
            own.append(str(found) if isinstance(found, (str, int)) and not isinstance(found, bool) else "")
        unique = all(own) and len(set(own)) == len(own)
        return own if unique else [str(number) for number in range(len(own))]

    def _cell(self, row: Mapping[str, Any], name: str) -> Any:
        return next((row[key] for key in self._columns[name] if row.get(key) is not None), None)

    def _text(self, row: Mapping[str, Any], name: str) -> str | None:
        value = self._cell(row, name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ValueError(f"{name}: expected a text, got {str(value)[:80]!r}")
        return value

    def _item(self, id: str, row: Mapping[str, Any]) -> Item:
        image = inside(self._root, self._cell(row, "image"), "image", self._allow_outside)
        expression = self._text(row, "expression")
        if expression is None:
            raise ValueError(f"expression: expected one of {', '.join(self._columns['expression'])}, got none")
        key = next((key for key in self._columns["box"] if row.get(key) is not None), None)
        if key is None:
            raise ValueError(f"box: expected one of {', '.join(self._columns['box'])}, got none")
        box = read_box(row[key], self._form or ("xyxy" if key == "box" else "xywh"))
        names = (expression, self._text(row, "category"))
        answer = self._text(row, "answer") or (expression if self._as_answer else None)
        return Item(
            id,
            image,
            prompt=self._text(row, "prompt") or self._prompt,
            answer=answer,
            categories={name: _TARGET for name in names if name},
            boxes={_TARGET: (box,)},
            extra={"expression": expression},
            compat=self._compat,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return the file's checksum, and how it is read."""
        return {
            "data": self.name,
            "rows": self._digest,
            "prompt": self._prompt,
            "box_format": self._form,
            "columns": {name: list(keys) for name, keys in self._columns.items()},
            "as_answer": self._as_answer,
        }


def _parsed(raw: Any) -> Mapping[str, Any]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data: expected a JSON object, got {raw[:80]!r} ({error})") from error
    if not isinstance(raw, Mapping):
        raise ValueError(f"data: expected a JSON object, got {type(raw).__name__}")
    return raw
