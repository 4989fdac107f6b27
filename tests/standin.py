"""Image processors that exist only for torchvision, with a stand-in for the few functions that they use of it.

Their modules import ``torchvision.transforms.v2.functional`` at the top. :func:`take` imports such a module with a
stand-in in ``sys.modules`` and takes it out again, so that no other test finds a torchvision that is none. With a real
torchvision nothing of this is used.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def _resize(
    image: Tensor, size: Any, interpolation: Any = InterpolationMode.BILINEAR, antialias: bool = True
) -> Tensor:
    mode = "bicubic" if interpolation in (InterpolationMode.BICUBIC, InterpolationMode.LANCZOS) else "bilinear"
    if isinstance(size, int):
        short, long = sorted(image.shape[-2:])
        other = int(size * long / short)
        size = (size, other) if image.shape[-2] <= image.shape[-1] else (other, size)
    batch = image if image.ndim == 4 else image[None]
    made = F.interpolate(batch.float(), tuple(size), mode=mode, antialias=antialias, align_corners=False)
    if not image.is_floating_point():
        made = made.round().clamp(0, 255).to(image.dtype)
    return made if image.ndim == 4 else made[0]


def _pad(image: Tensor, padding: Any, fill: Any = 0, padding_mode: str = "constant") -> Tensor:
    assert padding_mode == "constant"
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    left, top, right, bottom = sides * 2 if len(sides) == 2 else sides
    if isinstance(fill, (list, tuple)) and len(set(fill)) > 1:
        made = torch.tensor(list(fill), dtype=image.dtype)[:, None, None].expand(
            *image.shape[:-2], image.shape[-2] + top + bottom, image.shape[-1] + left + right
        )
        made = made.clone()
        made[..., top : top + image.shape[-2], left : left + image.shape[-1]] = image
        return made
    value = float(fill[0] if isinstance(fill, (list, tuple)) else fill or 0)
    return F.pad(image, (left, right, top, bottom), value=value)


def _normalize(image: Tensor, mean: Any, std: Any, inplace: bool = False) -> Tensor:
    mean, std = (torch.as_tensor(value, dtype=image.dtype).view(-1, 1, 1) for value in (mean, std))
    return (image - mean) / std


def _crop(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[..., top : top + height, left : left + width]


def _to_dtype(image: Tensor, dtype: torch.dtype = torch.float32, scale: bool = False) -> Tensor:
    if not scale or image.dtype == dtype:
        return image.to(dtype)
    if dtype.is_floating_point and not image.is_floating_point():
        return image.to(dtype) / 255
    return (image * 255).round().to(dtype)


def _grayscale_to_rgb(image: Tensor) -> Tensor:
    return image if image.shape[-3] == 3 else image.expand(*image.shape[:-3], 3, *image.shape[-2:])


def _pil_to_tensor(image: Any) -> Tensor:
    import numpy as np

    found = torch.from_numpy(np.array(image))
    return found[None] if found.ndim == 2 else found.permute(2, 0, 1)


_FUNCTIONS = {
    "InterpolationMode": InterpolationMode,
    "resize": _resize,
    "pad": _pad,
    "normalize": _normalize,
    "crop": _crop,
    "to_dtype": _to_dtype,
    "grayscale_to_rgb": _grayscale_to_rgb,
    "pil_to_tensor": _pil_to_tensor,
}


def _modules() -> dict[str, types.ModuleType]:
    names = (
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.v2",
        "torchvision.transforms.v2.functional",
    )
    made = {name: types.ModuleType(name) for name in names}
    made["torchvision.transforms.functional"] = made[names[-1]]
    for name in names[:-1]:
        made[name].__path__ = []  # type: ignore[attr-defined]
    made["torchvision"].transforms = made[names[1]]  # type: ignore[attr-defined]
    made[names[1]].v2 = made[names[2]]  # type: ignore[attr-defined]
    made[names[1]].functional = made[names[3]]  # type: ignore[attr-defined]
    made[names[1]].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    made[names[2]].functional = made[names[3]]  # type: ignore[attr-defined]
    for name, value in _FUNCTIONS.items():
        setattr(made[names[3]], name, value)
    return made


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    from PIL.Image import Resampling
    from transformers import image_processing_backends as backends

    modules = _modules()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    backends.tvF = modules["torchvision.transforms.v2.functional"]
    mapping = {
        mode: InterpolationMode[mode.name] if mode.name != "NEAREST" else InterpolationMode.NEAREST_EXACT
        for mode in Resampling
        if mode.name in InterpolationMode.__members__
    }
    backends.pil_torch_interpolation_mapping = mapping
    backends.torch_pil_interpolation_mapping = {value: key for key, value in mapping.items()}
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def take(module: str, name: str) -> Any:
    """Take a class of ``transformers.models.<module>`` (``"llama4.image_processing_llama4"``), torchvision or not."""
    path = f"transformers.models.{module}"
    if find_spec("torchvision") is not None:
        return getattr(import_module(path), name)
    if find_spec("transformers.image_processing_backends") is None:
        pytest.skip("image processors of this version of transformers are not built as the stand-in knows them")
    with _standing_in():
        found = getattr(import_module(path), name)
    return _unguarded(found)


def _unguarded(cls: Any) -> Any:
    """Undo what makes a class refuse to be made without torchvision."""
    wrapped = getattr(cls.__init__, "__wrapped__", None)
    return cls if wrapped is None else type(cls.__name__, (cls,), {"__init__": wrapped, "__module__": cls.__module__})
