"""Maps as bytes: a byte a cell on each map's own scale, base64 for texts, zlib for files.

The HTML page, data sets and the server hand maps on like this.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Packed", "compress", "decompress", "from_base64", "pack", "to_base64", "unpack"]

_TOP = 255


class Packed(NamedTuple):
    """Maps as bytes: a value is ``levels / 255 * scale``.

    Attributes
    ----------
    levels : (T, N) uint8
    scale : (T,) float32
        Each map's largest value. 0 for a map of zeros.
    """

    levels: Tensor
    scale: Tensor


def pack(maps: Tensor) -> Packed:
    """Round maps to bytes, each on its own scale, so that a faint one keeps its shape.

    Parameters
    ----------
    maps : (T, N) floating point
        At least 0. NaN counts as 0.

    Returns
    -------
    Packed
        On the device of `maps`. Values are off by at most ``scale / 510``; a map's largest cells have level 255.

    Raises
    ------
    TypeError, ValueError
        If they are not of two dimensions, no floating point, infinite or negative.
    """
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"maps: expected a floating point Tensor, got {getattr(maps, 'dtype', type(maps).__name__)}")
    if maps.ndim != 2:
        raise ValueError(f"maps: expected (T, N), got {tuple(maps.shape)}")
    values = torch.nan_to_num(maps.detach().double(), nan=0.0)
    if values.numel() and not (values.min() >= 0 and values.max() < torch.finfo(torch.float32).max):
        raise ValueError(
            f"maps: expected finite values of at least 0, got {float(values.min())} to {float(maps.max())}"
        )
    scale = values.amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
    # A scale that float32 rounds to 0 would leave levels of nothing.
    kept = scale.float()
    factor = torch.where(kept > 0, _TOP / scale, 0.0)
    return Packed((values * factor[:, None]).round().clamp(0, _TOP).to(torch.uint8), kept)


def unpack(packed: Packed) -> Tensor:
    """Return the maps that were packed, (T, N) float32.

    Raises
    ------
    ValueError
        If levels and scale do not belong together.
    """
    levels, scale = packed
    if levels.ndim != 2 or levels.dtype != torch.uint8 or scale.shape != levels.shape[:1]:
        got = f"{tuple(levels.shape)} of {levels.dtype} and {tuple(scale.shape)}"
        raise ValueError(f"packed: expected levels (T, N) of uint8 and scale (T,), got {got}")
    return levels.float() / _TOP * scale.float()[:, None]


def to_base64(levels: Tensor) -> str:
    """Write bytes (..., N) as base64, row-major."""
    return base64.b64encode(_bytes(levels)).decode("ascii")


def from_base64(text: str, shape: tuple[int, ...]) -> Tensor:
    """Read what :func:`to_base64` wrote.

    Raises
    ------
    ValueError
        If it is no base64, or not of that many bytes.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"text: expected base64, got {text[:40]!r}: {error}") from error
    return _shaped("text", data, shape)


def compress(levels: Tensor, level: int = 6) -> bytes:
    """Compress bytes (..., N) with zlib.

    Parameters
    ----------
    levels : (..., N) uint8
    level : int
        Of zlib, 0 to 9.
    """
    return zlib.compress(_bytes(levels), level)


def decompress(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """Read what :func:`compress` wrote: no more than `shape` says, however much there is.

    Raises
    ------
    ValueError
        If it is no zlib stream, damaged, or not of that many bytes.
    """
    expected = _count(shape)
    reader = zlib.decompressobj()
    try:
        found = reader.decompress(data, expected + 1)
    except zlib.error as error:
        raise ValueError(f"data: expected a zlib stream, got {data[:8]!r}: {error}") from error
    if len(found) == expected and not reader.eof:
        raise ValueError(f"data: expected a whole zlib stream of {expected} bytes, got one that goes on or breaks off")
    return _shaped("data", found, shape)


def _bytes(levels: Tensor) -> bytes:
    if levels.dtype != torch.uint8:
        raise TypeError(f"levels: expected uint8, got {levels.dtype}")
    return levels.detach().cpu().contiguous().numpy().tobytes()


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _shaped(name: str, data: bytes, shape: tuple[int, ...]) -> Tensor:
    if len(data) != _count(shape):
        raise ValueError(f"{name}: expected {_count(shape)} bytes for {shape}, got {len(data)}")
    # A copy: bytes cannot be written to, which torch warns of.
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)
        if data
        else torch.empty(shape, dtype=torch.uint8)
    )
