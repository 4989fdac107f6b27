"""COCO captions with masks, in the layout of the published evaluation script: :class:`CocoCaptions`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tam_fast.evaluation.data.files import inside, read_bytes, read_categories, read_json
from tam_fast.evaluation.data.item import Item, broken
from tam_fast.evaluation.data.prompts import PROMPTS, prompt_of

__all__ = ["RENAMED", "CocoCaptions"]

_FILES = (
    ("annotations/instances_minival2014.json", "annotations/captions_val2014.json"),
    ("instances.json", "captions.json"),
)

RENAMED = {"sports ball": "ball", "wine glass": "glass"}
"""Categories that the published script has under other names."""


class CocoCaptions:
    """Photographs with captions and masks: ``image/%012d.jpg``, ``seg_label/%012d.png`` (pixel = category id).

    Parameters
    ----------
    folder : Path
        With ``annotations/instances_minival2014.json`` and ``annotations/captions_val2014.json``, or with
        ``instances.json`` and ``captions.json``. Items are the images of the first, in its order. `image` and
        `seg_label` may be links to folders elsewhere.
    prompt : str, optional
        In place of ``"one-sentence"`` of :data:`tam_fast.evaluation.data.PROMPTS`.
    compat : None or "official"
        ``"official"``: "sports ball" is called "ball", and "wine glass" "glass"; masks that are missing are zeros. By
        default categories are called as in the file, and a missing mask is that item's error.

    Raises
    ------
    ValueError, FileNotFoundError
        If the files are not there or hold something else.
    """

    name = "coco"

    def __init__(self, folder: Path, *, prompt: str | None = None, compat: str | None = None) -> None:
        self._folder, self._compat = Path(folder), compat
        self._prompt = prompt_of(prompt) or PROMPTS["one-sentence"]
        found = next((names for names in _FILES if self._has(names)), None)
        if found is None:
            raise FileNotFoundError(f"data: expected {_FILES[0][0]} and {_FILES[0][1]} in {folder}, got none")
        instances, captions = (self._folder / name for name in found)
        self._digests = [hashlib.sha256(read_bytes(path, "data")).hexdigest() for path in (instances, captions)]
        document, spoken = read_json(instances), read_json(captions)
        try:
            self._ids = [int(image["id"]) for image in document["images"]]
            named = [(category["name"], category["id"]) for category in document["categories"]]
            self._captions: dict[int, list[str]] = {}
            for one in spoken["annotations"]:
                self._captions.setdefault(int(one["image_id"]), []).append(str(one["caption"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"data: expected COCO's images, categories and captions in {instances} and {captions}, got others "
                f"({type(error).__name__}: {error})"
            ) from error
        if compat == "official":
            named = [(RENAMED.get(name, name), label) for name, label in named]
        self._categories = read_categories(named)

    @staticmethod
    def fits(folder: Path) -> bool:
        """Whether a folder has these files."""
        return any(all((folder / name).is_file() for name in names) for names in _FILES)

    def _has(self, names: tuple[str, ...]) -> bool:
        return all((self._folder / name).is_file() for name in names)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._ids)

    def __iter__(self) -> Iterator[Item]:
        """Yield an item an image."""
        for number in self._ids:
            stem = f"{number:012d}"
            try:
                # The folders themselves may be links; what lies in them may not lead out.
                image = inside(self._folder / "image", f"{stem}.jpg", "image")
                mask = inside(self._folder / "seg_label", f"{stem}.png", "mask")
            except ValueError as error:
                yield broken(stem, error)
                continue
            yield Item(
                stem,
                image,
                tuple(self._captions.get(number, ())),
                self._prompt,
                categories=self._categories,
                mask=mask,
                compat=self._compat,
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return the annotations' checksums, and the prompt."""
        instances, captions = self._digests
        return {
            "data": self.name,
            "instances": instances,
            "captions": captions,
            "prompt": self._prompt,
            "compat": self._compat,
        }
