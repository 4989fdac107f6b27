"""What data sets consist of: :class:`Item`, and what gives them, a :class:`Reader`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from tam_fast.evaluation.data.files import check_labels, image_labels, read_bytes, read_labels
from tam_fast.models.files import read_image, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Boxes", "Item", "Opener", "Reader", "broken", "chosen", "count_of"]

Boxes: TypeAlias = "Mapping[int, tuple[tuple[float, float, float, float], ...]]"
"""Boxes x0, y0, x1, y1 in pixels by label."""


@dataclass(frozen=True, eq=False)
class Item:
    """One image of a data set, and what is known of it. Nothing is read before it is asked for.

    Attributes
    ----------
    id : str
        Unique in the data set.
    image : path, PIL image, bytes of an image file, array, or a function that returns one of them
    references : tuple of str
        Captions that people wrote.
    prompt : str, optional
        What is asked; the run's own if None.
    answer : str, optional
        A given answer; None lets the model write one.
    categories : mapping of str to int
        Labels of the masks or boxes by name; several names may share one.
    mask : path, PIL image, bytes, array (H, W), a function that returns one of them, or None
        The label of each pixel; None where the data set has no masks.
    boxes : mapping of int to tuple of (x0, y0, x1, y1)
        In pixels of the upright image, by label, where there are boxes in place of masks.
    extra : mapping
        What only some data sets know.
    background : int
        The label of pixels that belong to no category.
    compat : None or "official"
        How masks are read: see :meth:`load_mask`.
    error : str
        Why the item cannot be used; loading its image raises it.
    """

    id: str
    image: Any = None
    references: tuple[str, ...] = ()
    prompt: str | None = None
    answer: str | None = None
    categories: Mapping[str, int] = field(default_factory=dict)
    mask: Any = None
    boxes: Boxes = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    background: int = 0
    compat: str | None = None
    error: str = ""

    def load_image(self) -> Image.Image:
        """Decode the image: upright, RGB.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            If it cannot be read, or a box lies outside of it.
        """
        return self.read_image()[0]

    def read_image(self) -> tuple[Image.Image, str]:
        """Decode the image, and tell its SHA-256: of the file's bytes, or of size and pixels where there is no file.

        Returns
        -------
        (PIL.Image.Image, str)
        """
        if self.error:
            raise ValueError(self.error)
        source = self.image() if callable(self.image) else self.image
        if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
            picture, digest = _decoded(source)
        else:
            from tam_fast.models.images import load_image

            picture = load_image(source, "image")
            pixels = f"RGB {picture.width} {picture.height} ".encode() + picture.tobytes()
            digest = hashlib.sha256(pixels).hexdigest()
        _check_boxes(self.boxes, picture.size)
        return picture, digest

    def load_mask(
        self, size: tuple[int, int] | None = None, grid: tuple[int, int] | None = None
    ) -> NDArray[Any] | None:
        """Read the label of each pixel.

        Parameters
        ----------
        size : (width, height), optional
            Of the upright image: a mask of another shape, such as that of a picture that was turned, is an error. It
            may be smaller or larger.
        grid : (h, w), optional
            Of the maps, for ``compat="official"``: where there is no file, zeros of this shape stand for it (of the
            image's without it), as in the published script. By default that is an error.

        Returns
        -------
        (H, W) integer array, or None
            None where the data set has no masks.

        Raises
        ------
        ValueError, FileNotFoundError
            If it is missing or cannot be read.
        """
        if self.error:
            raise ValueError(self.error)
        source = self.mask() if callable(self.mask) else self.mask
        if source is None:
            return None
        official = self.compat == "official"
        if isinstance(source, (str, os.PathLike)):
            if official and not Path(source).exists():
                width, height = size or self.load_image().size
                return np.zeros(grid or (height, width), dtype=np.uint8)
            try:
                made = read_labels(read_bytes(Path(source), "mask"), compat=self.compat)
            except ValueError as error:
                raise ValueError(f"{error}: {shown(str(source))}") from error
        elif isinstance(source, (bytes, bytearray, memoryview)):
            made = read_labels(bytes(source), compat=self.compat)
        elif isinstance(source, Image.Image):
            made = image_labels(source)
        else:
            made = check_labels(source)
        if size is not None and not official:
            _check_shape(made, size)
        return made


def _decoded(source: Any) -> tuple[Image.Image, str]:
    is_path = isinstance(source, (str, os.PathLike))
    data = read_bytes(Path(source), "image") if is_path else bytes(source)
    try:
        picture, _ = read_image(io.BytesIO(data))
    except ValueError as error:
        got = shown(str(source)) if is_path else f"{len(data)} bytes"
        raise ValueError(f"image: expected an image file, got {got} ({error})") from error
    return picture, hashlib.sha256(data).hexdigest()


def _check_shape(mask: NDArray[Any], size: tuple[int, int]) -> None:
    (height, width), (across, down) = mask.shape, size
    # Rounding of a mask's size may be off by a pixel.
    if abs(width / across - height / down) > 1 / across + 1 / down:
        raise ValueError(
            f"mask: expected the shape of the image, {across} x {down} (width x height), got {width} x {height}"
        )


def _check_boxes(boxes: Boxes, size: tuple[int, int]) -> None:
    width, height = size
    for some in boxes.values():
        for x0, y0, x1, y1 in some:
            # Half a pixel is rounding; more is mostly width and height taken for a corner, or the other way round.
            if not (-1 <= x0 < x1 <= width + 1 and -1 <= y0 < y1 <= height + 1):
                raise ValueError(
                    f"boxes: expected x0 < x1 <= {width} and y0 < y1 <= {height}, got {(x0, y0, x1, y1)}; box_format "
                    "says what the numbers are"
                )


class Reader(Protocol):
    """What gives the items of a data set, in the same order each time.

    ``len(reader)`` may be missing where it is not known. A reader of one's own is such a class; what cannot be read of
    one item is an :class:`Item` with its `error`, or an error when its image or mask is loaded::

        class Sketches:
            name = "sketches"

            def __init__(self, folder, prompt=None):
                self.paths, self.prompt = sorted(Path(folder).glob("*.png")), prompt

            def __len__(self):
                return len(self.paths)

            def __iter__(self):
                for path in self.paths:
                    mask = path.with_suffix(".npy")
                    yield Item(path.stem, path, prompt=self.prompt, categories={"house": 1}, mask=mask)

            def fingerprint(self):
                return {"data": self.name}

        results = tam_fast.evaluation.evaluate(Sketches("sketches"), explainer, ["tam", "cam"])

    :func:`tam_fast.evaluation.data.register` gives it a name, for the command line.
    A reader that knows the parts of speech of its own texts may have ``tags(words)``: tags of the Penn Treebank, or
    None for words that it does not know.
    """

    name: str

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __iter__(self) -> Iterator[Item]:
        """Yield the items."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this data set from others, plain data without paths: results of two are not mixed."""
        ...


def chosen(reader: Any, limit: int | None = None, shard: tuple[int, int] | None = None) -> Iterator[tuple[int, Item]]:
    """Yield the items of a shard among the first `limit`, with their places in the data set.

    Parameters
    ----------
    reader : Reader
    limit : int, optional
        At least 1.
    shard : (i, n), optional
        Items i, i + n, i + 2 n, ...

    Raises
    ------
    ValueError
        If `limit` or `shard` are none of these.
    """
    part, parts = _check_part(limit, shard)
    return _chosen(reader, limit, part, parts)


def _chosen(reader: Any, limit: int | None, part: int, parts: int) -> Iterator[tuple[int, Item]]:
    for index, item in enumerate(reader):
        if limit is not None and index >= limit:
            return
        if index % parts == part:
            yield index, item


def count_of(reader: Any, limit: int | None = None, shard: tuple[int, int] | None = None) -> int | None:
    """Count what :func:`chosen` yields; None where the reader does not know."""
    part, parts = _check_part(limit, shard)
    try:
        count = len(reader)
    except TypeError:
        return None
    return len(range(part, count if limit is None else min(count, limit), parts))


def _check_part(limit: int | None, shard: tuple[int, int] | None) -> tuple[int, int]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    part, parts = (0, 1) if shard is None else shard
    if parts < 1 or not 0 <= part < parts:
        raise ValueError(f"shard: expected (i, n) with 0 <= i < n, got {shard}")
    return part, parts


def broken(id: str, error: Exception | str) -> Item:
    """Make an item of which nothing can be used."""
    return Item(id, error=str(error))


Opener: TypeAlias = "Callable[..., Reader]"
"""Opens a data set: takes what stands behind the scheme or the path, and options by name."""
