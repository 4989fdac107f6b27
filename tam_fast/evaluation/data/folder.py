"""A folder of images, with masks, captions and answers where there are such: :class:`ImageFolder`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tam_fast.evaluation.data.files import IMAGES, inside, read_categories, read_json
from tam_fast.evaluation.data.item import Item, broken
from tam_fast.evaluation.data.prompts import prompt_of

__all__ = ["ImageFolder"]

_IMAGES = ("images", "image")
_MASKS = ("masks", "seg_label")
_LABELS = "labels.json"
_ENDINGS = (".png", ".npy", ".tif", ".tiff", ".bmp")


class ImageFolder:
    """Image files, and what lies beside them under the same stem.

    ::

        photographs/
          images/street.jpg, images/park/dog.jpg
          masks/street.png, masks/park/dog.png     a label each pixel (also .npy, .tif, .bmp); 0 belongs to nothing
          labels.json                              {"car": 1, "traffic light": 2, ...}
          captions.json                            {"street.jpg": "A street ...", "park/dog.jpg": ["A dog ...", ...]}
          answers.json                             {"street.jpg": "..."}: given answers, explained as they are
          prompts.json                             {"street.jpg": "..."}: questions of their own

    All but the images may be missing. Without ``images`` (or ``image``) they are those of the folder itself; masks may
    lie in ``seg_label``, too. An item's id is the image's name, as in these files.

    Parameters
    ----------
    folder : Path
    prompt : str, optional
        What is asked about each image.
    compat : None or "official"
        How masks are read: see :meth:`Item.load_mask`.
    allow_outside : bool
        Whether links may lead out of the folder.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no image, masks have no labels, or a file holds something else or names an image that is not there.
    """

    name = "folder"

    def __init__(
        self, folder: Path, *, prompt: str | None = None, compat: str | None = None, allow_outside: bool = False
    ) -> None:
        self._folder, self._compat, self._allow_outside = Path(folder), compat, allow_outside
        self._prompt = prompt_of(prompt)
        self._images = self._part(_IMAGES) or self._folder
        self._masks = self._part(_MASKS)
        self._names = self._listed()
        if not self._names:
            raise FileNotFoundError(f"data: expected images in {self._images}, got none")
        self._categories: dict[str, int] = {}
        labels = self._folder / _LABELS
        if labels.is_file():
            self._categories = read_categories(read_json(labels, "labels"), "labels")
        elif self._masks is not None:
            raise FileNotFoundError(f"labels: expected {labels}, which says what the masks' numbers are, got none")
        self._captions = self._texts("captions.json")
        self._answers = self._single("answers.json")
        self._prompts = self._single("prompts.json")

    @staticmethod
    def fits(folder: Path) -> bool:
        """Whether a folder has images where they are expected."""
        if not folder.is_dir():
            return False
        places = [folder / name for name in _IMAGES if (folder / name).is_dir()] or [folder]
        return next(_walk(places[0], ""), None) is not None

    def _part(self, names: tuple[str, ...]) -> Path | None:
        there = [self._folder / name for name in names if (self._folder / name).is_dir()]
        if len(there) > 1:
            raise ValueError(f"data: expected one of {', '.join(names)} in {self._folder}, got both")
        return there[0] if there else None

    def _listed(self) -> list[str]:
        apart = self._masks if self._images == self._folder else None
        return [name for name in _walk(self._images, "") if apart is None or name.split("/")[0] != apart.name]

    def _texts(self, name: str) -> dict[str, tuple[str, ...]]:
        path = self._folder / name
        if not path.is_file():
            return {}
        document = read_json(path, name)
        if not isinstance(document, dict):
            raise ValueError(f"{name}: expected texts by the image's name, got {type(document).__name__}")
        known = set(self._names)
        found: dict[str, tuple[str, ...]] = {}
        for image, value in document.items():
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{name}: expected a text or a list of texts of {image!r}, got {str(value)[:80]}")
            if image not in known:
                raise ValueError(f"{name}: expected names of images in {self._images}, got {image!r}")
            found[image] = tuple(texts)
        return found

    def _single(self, name: str) -> dict[str, str]:
        found = self._texts(name)
        several = next((image for image, texts in found.items() if len(texts) != 1), None)
        if several is not None:
            raise ValueError(f"{name}: expected one text of {several!r}, got {len(found[several])}")
        return {image: texts[0] for image, texts in found.items()}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def __iter__(self) -> Iterator[Item]:
        """Yield an item an image, in the order of their names."""
        for name in self._names:
            try:
                image = inside(self._images, name, "image", self._allow_outside)
                mask = self._mask(name)
            except ValueError as error:
                yield broken(name, error)
                continue
            yield Item(
                name,
                image,
                self._captions.get(name, ()),
                self._prompts.get(name, self._prompt),
                self._answers.get(name),
                self._categories,
                mask,
                compat=self._compat,
            )

    def _mask(self, name: str) -> Path | None:
        if self._masks is None:
            return None
        stem = name.rpartition(".")[0]
        found = [ending for ending in _ENDINGS if (self._masks / f"{stem}{ending}").exists()]
        if len(found) > 1:
            raise ValueError(f"mask: expected one file of {stem}, got {', '.join(found)}")
        # One that is missing is told of when it is read.
        return inside(self._masks, f"{stem}{found[0] if found else _ENDINGS[0]}", "mask", self._allow_outside)

    def fingerprint(self) -> dict[str, Any]:
        """Return the labels and the prompt: images may be added."""
        return {"data": self.name, "labels": self._categories, "prompt": self._prompt, "compat": self._compat}


def _walk(root: Path, under: str) -> Iterator[str]:
    """List image files below a folder by name, with ``/``; hidden ones and linked folders are left out."""
    with os.scandir(root / under) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        name = f"{under}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, f"{name}/")
        elif Path(entry.name).suffix.lower() in IMAGES and entry.is_file():
            yield name
