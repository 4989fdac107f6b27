"""GranDf and OpenPSG in the layout of the published evaluation script, ``anno.json``: :class:`Annotated`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tam_fast.evaluation.data.files import inside, read_bytes, read_categories
from tam_fast.evaluation.data.item import Item, broken
from tam_fast.evaluation.data.prompts import prompt_of

__all__ = ["DATA_SETS", "FILE", "Annotated"]

FILE = "anno.json"

DATA_SETS: Mapping[str, str] = MappingProxyType({"grandf": "two-sentences", "openpsg": "three-sentences"})
"""Whose layout it is, and how each is asked; nothing else tells them apart."""


class Annotated:
    """Rows [image, text, label image, {name: label}] in ``anno.json``: GranDf, OpenPSG, or another of that form.

    Parameters
    ----------
    folder : Path
        The names of files are relative to it.
    layout : "grandf", "openpsg" or "anno"
        Which says how it is asked; ``"anno"`` needs a prompt.
    prompt : str, optional
    compat : None or "official"
        ``"official"``: masks that are missing are zeros. By default that is the item's error.
    allow_outside : bool
        Whether files may lie outside of the folder.

    Raises
    ------
    ValueError, FileNotFoundError
        If the file is none of these, or nothing says how to ask.
    """

    name = "anno"

    def __init__(
        self,
        folder: Path,
        *,
        layout: str = "anno",
        prompt: str | None = None,
        compat: str | None = None,
        allow_outside: bool = False,
    ) -> None:
        self._folder, self._compat, self._allow_outside = Path(folder), compat, allow_outside
        asked = prompt_of(prompt or DATA_SETS.get(layout))
        if asked is None:
            raise ValueError(
                f"layout: expected {' or '.join(DATA_SETS)}, or a prompt, for a folder with {FILE}, got none: they are "
                "of one form, and are asked differently"
            )
        self._prompt = asked
        data = read_bytes(self._folder / FILE, "data")
        self._digest = hashlib.sha256(data).hexdigest()
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data: expected JSON, got {self._folder / FILE} ({error})") from error
        if not isinstance(rows, list):
            raise ValueError(f"data: expected a list of rows in {self._folder / FILE}, got {type(rows).__name__}")
        self._rows = rows

    @staticmethod
    def fits(folder: Path) -> bool:
        """Whether a folder has this file."""
        return (folder / FILE).is_file()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Item]:
        """Yield an item a row; its id is the image's name, with a number where rows share one."""
        seen: dict[str, int] = {}
        for number, row in enumerate(self._rows):
            name = row[0] if isinstance(row, list) and row and isinstance(row[0], str) else f"row {number}"
            seen[name] = seen.get(name, 0) + 1
            id = name if seen[name] == 1 else f"{name}#{seen[name]}"
            try:
                yield self._item(id, row)
            except ValueError as error:
                yield broken(id, error)

    def _item(self, id: str, row: Any) -> Item:
        if not isinstance(row, list) or len(row) < 4 or not isinstance(row[1], str):
            raise ValueError(f"data: expected [image, text, label image, {{name: label}}], got {str(row)[:200]}")
        image, mask = (
            inside(self._folder, name, what, self._allow_outside)
            for name, what in ((row[0], "image"), (row[2], "mask"))
        )
        least = 0 if self._compat == "official" else 1
        return Item(
            id,
            image,
            (row[1],),
            self._prompt,
            categories=read_categories(row[3], least=least),
            mask=mask,
            compat=self._compat,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return the file's checksum, and the prompt."""
        return {"data": self.name, "rows": self._digest, "prompt": self._prompt, "compat": self._compat}
