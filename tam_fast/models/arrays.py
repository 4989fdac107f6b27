"""Pictures and frames that are numpy arrays or torch tensors, as 8 bits: :func:`read_pixels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["is_array", "read_pixels"]

_TAKEN = {
    3: "(H, W, 3) of uint8 or (3, H, W) of floats in [0, 1]",
    4: "(F, H, W, 3) of uint8 or (F, 3, H, W) of floats in [0, 1]",
}


def is_array(value: Any) -> bool:
    """Whether a value is a numpy array or a torch tensor."""
    import numpy as np
    import torch

    return isinstance(value, (np.ndarray, torch.Tensor))


def read_pixels(values: Any, name: str, ndim: int = 3) -> np.ndarray[Any, Any]:
    """Bring the pixels of a picture, or of the frames of a video, to 8 bits with the channels last.

    Floats become ``round(255 * x)``. Bytes with the channels last and floats with the channels first are what Pillow
    and torchvision make of a picture; the other two are refused, because they are as often a mistake.

    Parameters
    ----------
    values : (H, W, 3) uint8 or (3, H, W) float, numpy array or torch tensor
        Floats in [0, 1]. Of any strides; a tensor on any device, with or without a gradient.
    name : str
        What it is called in messages.
    ndim : int
        3, or 4 with the frames first.

    Returns
    -------
    (H, W, 3) or (F, H, W, 3) uint8 array
        A copy.

    Raises
    ------
    ValueError
        If shape or type are others, nothing is in it, it has a mask, or a float is outside [0, 1] or NaN.
    """
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        got = f"{tuple(values.shape)} of {str(values.dtype).removeprefix('torch.')}"
    else:
        got = f"{values.shape} of {values.dtype}"
    expected = f"{name}: expected an array {_TAKEN[ndim]}, got {got}"
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{expected} with a mask: fill it first, such as array.filled(255)")
    if ndim == 3 and values.ndim == 4:
        raise ValueError(f"{expected}: give several images as a list, list(array)")
    floats = _is_float(values)
    first, last = ndim - 3, ndim - 1
    if values.ndim == ndim and not floats and values.shape[last] != 3 and values.shape[first] == 3:
        axes = "1, 2, 0" if ndim == 3 else "0, 2, 3, 1"
        method = "permute" if isinstance(values, torch.Tensor) else "transpose"
        raise ValueError(f"{expected}: put the channels of bytes last, array.{method}({axes})")
    if values.ndim == ndim and floats and values.shape[first] != 3 and values.shape[last] == 3:
        raise ValueError(f"{expected}: put the channels of floats first, or convert them to bytes")
    if values.ndim != ndim or values.shape[first if floats else last] != 3 or 0 in values.shape:
        raise ValueError(expected)
    if isinstance(values, torch.Tensor):
        # float32 holds every value of the shorter types, some of which numpy does not know.
        values = values.detach().cpu()
        values = (values.float() if floats and values.dtype != torch.float64 else values).resolve_neg().numpy()
    if not floats:
        if values.dtype != np.uint8:
            raise ValueError(f"{expected}: scale it to 0 to 255 and convert it to uint8")
        return np.array(values, order="C", subok=False)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{expected}, from {low:g} to {high:g}")
    values = np.moveaxis(values, first, last)
    pixels = np.empty(values.shape, np.uint8)
    for part, into in zip(values, pixels, strict=True):  # a frame, or a row, at a time: as float64 all take much memory
        into[...] = np.rint(part.astype(np.float64) * 255)
    return pixels


def _is_float(values: Any) -> bool:
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        return values.is_floating_point()
    return bool(np.issubdtype(values.dtype, np.floating))
