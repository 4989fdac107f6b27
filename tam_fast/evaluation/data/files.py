"""What data sets are read from: regular files inside their folder, JSON, label images; never fetched or unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tam_fast.models.files import not_a_path, opened, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IMAGES",
    "check_labels",
    "checksum",
    "image_labels",
    "inside",
    "read_bytes",
    "read_categories",
    "read_json",
    "read_labels",
    "read_text",
]

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""Endings of image files, in small letters."""

_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_ONE_NUMBER = ("1", "L", "P", "I")  # and I;16, I;16B, ...
_NPY = b"\x93NUMPY"


def inside(root: Path, name: Any, what: str, allow_outside: bool = False) -> Path:
    """Return the path of a file that a row names; whether it is there is found out when it is read.

    Parameters
    ----------
    root : Path
        The data set's folder, which `name` is relative to.
    name : str
    what : str
        What it is called in messages: ``"image"``, ``"mask"``.
    allow_outside : bool
        Whether it may lie elsewhere, also by way of links. Links to folders, right in `root`, are followed in any case.

    Raises
    ------
    ValueError
        If it is no text, a URL, which is never fetched, or lies outside `root`.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{what}: expected the name of a file, got {name!r:.200}")
    problem = not_a_path(name)
    if problem:
        raise ValueError(f"{what}: expected the name of a file, got {problem}")
    path = root / name
    if not allow_outside and not _is_inside(path, root, name):
        raise ValueError(
            f"{what}: expected a file inside {root}, got {shown(name)}, which leads out of it; allow_outside takes it"
        )
    return path


def _is_inside(path: Path, root: Path, name: str) -> bool:
    real = Path(os.path.realpath(path))
    if real.is_relative_to(os.path.realpath(root)):
        return True
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or len(parts) < 2:
        return False
    # Folders of images are often links.
    return real.is_relative_to(os.path.realpath(root / parts[0]))


def read_bytes(path: Path, what: str) -> bytes:
    """Read a regular file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is a folder, a pipe, a device, or cannot be read.
    """
    try:
        # A pipe would wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(f"{what}: expected a file, got no file at {shown(str(path))}") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ValueError(f"{what}: expected a file, got {shown(str(path))} ({problem})") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{what}: expected a regular file, got {shown(str(path))}, which is none")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def read_text(path: Path, what: str = "data") -> str:
    """Read a text in UTF-8."""
    try:
        return read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: expected a text in UTF-8, got {path} ({error.reason})") from error


def read_json(path: Path, what: str = "data") -> Any:
    """Read a JSON file.

    Raises
    ------
    ValueError, FileNotFoundError
        If it is none; names the file.
    """
    try:
        return json.loads(read_text(path, what))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{what}: expected JSON, got {path} ({error})") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(read_bytes(path, "data")).hexdigest()


def read_labels(data: bytes, what: str = "mask", compat: str | None = None) -> NDArray[Any]:
    """Decode a label image: a number each pixel.

    Parameters
    ----------
    data : bytes
        Of a PNG or another image file that loses nothing, or of a ``.npy`` file. Of a palette the indices count.
    what : str
    compat : None or "official"
        ``"official"``: as OpenCV makes a grey picture of it, the palette's colours, and 16 bits by 256.

    Returns
    -------
    (H, W) integer array

    Raises
    ------
    ValueError
        If it is damaged, has several numbers a pixel, or was compressed with loss, which makes up labels.
    """
    if data[: len(_NPY)] == _NPY:
        try:
            return check_labels(np.load(io.BytesIO(data), allow_pickle=False), what)
        except (ValueError, EOFError, OSError) as error:
            if str(error).startswith(f"{what}: "):
                raise
            raise ValueError(f"{what}: expected an array of numbers, got a .npy file ({error})") from error
    if compat == "official":
        return _grey(data, what)
    try:
        with opened(io.BytesIO(data), None, "") as image:
            image.load()
            kept = image.copy()
            kept.format = image.format
    except ValueError as error:
        raise ValueError(f"{what}: expected an image of labels, got {len(data)} bytes ({error})") from error
    return image_labels(kept, what)


def image_labels(image: Image.Image, what: str = "mask") -> NDArray[Any]:
    """Return the labels of a PIL image; as :func:`read_labels`."""
    if image.format in _LOSSY:
        raise ValueError(f"{what}: expected an image that loses nothing, such as PNG, got {image.format}")
    if image.mode not in _ONE_NUMBER and not image.mode.startswith("I;"):
        raise ValueError(f"{what}: expected one number a pixel (modes {', '.join(_ONE_NUMBER)}), got mode {image.mode}")
    return check_labels(np.array(image), what)


def _grey(data: bytes, what: str) -> NDArray[Any]:
    try:
        import cv2
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{what}: expected OpenCV, which the official script reads masks with: pip install 'tam-fast[evaluation]'"
        ) from error
    made = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    if made is None:
        raise ValueError(f"{what}: expected an image that OpenCV reads, got {len(data)} bytes")
    return np.asarray(made)


def check_labels(values: Any, what: str = "mask") -> NDArray[Any]:
    """Check labels (H, W): whole numbers from 0.

    Raises
    ------
    ValueError
        If shape, type or range are others.
    """
    made = np.asarray(values)
    if made.dtype == np.bool_:
        made = made.astype(np.uint8)
    if made.ndim != 2 or not made.size or not np.issubdtype(made.dtype, np.integer):
        raise ValueError(f"{what}: expected labels (H, W), whole numbers, got {made.shape} of {made.dtype}")
    if made.min() < 0:
        raise ValueError(f"{what}: expected labels from 0, got {made.min()}")
    return made


def read_categories(value: Any, what: str = "categories", least: int = 1) -> dict[str, int]:
    """Read names and their labels: a mapping, pairs, or such as JSON text.

    Entries without a label (None), which tables make of what a row lacks, are left out.

    Raises
    ------
    ValueError
        If a name is no text, or a label no whole number from `least`: the pixels of no category are 0.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{what}: expected names and their labels, got {value[:80]!r}") from error
    pairs = value.items() if isinstance(value, Mapping) else value
    found: dict[str, int] = {}
    try:
        entries = [tuple(pair) for pair in pairs]
    except TypeError as error:
        raise ValueError(f"{what}: expected names and their labels, got {type(value).__name__}") from error
    for entry in entries:
        if len(entry) != 2:
            raise ValueError(f"{what}: expected pairs of a name and a label, got {entry!r:.80}")
        name, label = entry
        if label is None:
            continue
        whole = hasattr(label, "__index__") and not isinstance(label, bool)
        if not isinstance(name, str) or not name.strip() or not whole:
            raise ValueError(f"{what}: expected names and whole numbers, got {name!r}: {label!r}")
        if int(label) < least:
            raise ValueError(f"{what}: expected labels from {least}, got {name!r}: {label}")
        found[name] = int(label)
    return found
