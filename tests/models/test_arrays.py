"""One picture in every form: files, bytes, PIL images, arrays and tensors give the same pixels."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from tam_fast.models.images import load_images


def _forms(pixels: np.ndarray, folder: Path) -> dict[str, Any]:
    """One picture in every form that is taken."""
    picture = Image.fromarray(pixels)
    path = folder / "x.png"
    picture.save(path)
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    floats = torch.from_numpy(first).float() / 255
    return {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "memoryview": memoryview(path.read_bytes()),
        "PIL": picture,
        "uint8 array": pixels,
        "uint8 tensor": torch.from_numpy(pixels),
        "uint8 tensor, channels first in memory": torch.from_numpy(first).permute(1, 2, 0),
        "float32 tensor": floats,
        "float32 tensor with a gradient": floats.clone().requires_grad_(),
        "float64 array": first / 255,
        "float16 array": (first / 255).astype(np.float16),
        "float16 tensor": floats.half(),
        "float32 tensor, channels last in memory": (torch.from_numpy(pixels) / 255).permute(2, 0, 1),
        "float32 array": floats.numpy()[:, ::-1][:, ::-1],
        "bfloat16 tensor": floats.bfloat16(),
    }


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_every_form_of_a_picture_gives_the_same_pixels(pixels: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, form in _forms(pixels, Path(folder)).items():
            (picture,) = load_images([form])
            assert picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), pixels), name


def test_floats_are_rounded_to_the_nearest_level() -> None:
    values = np.array([0, 0.4, 0.6, 1.49, 1.51, 127.4, 127.6, 254.6, 255]) / 255
    picture = load_images(np.broadcast_to(values, (3, 1, 9)))[0]
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 127, 128, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_bytes_of_a_file_are_turned_once_as_the_file_is(orientation: int, kind: str, tmp_path: Path) -> None:
    if kind == "webp" and not features.check("webp"):
        pytest.skip("this Pillow was built without WebP")
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    path = tmp_path / f"x.{kind}"
    marked.save(path, exif=exif)
    read = np.asarray(load_images(path)[0])
    assert read.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    if kind in ("png", "tif"):
        pixels = np.asarray(marked)
        turned = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]
        turned += [one.transpose(1, 0, 2) for one in (turned[0], turned[3], turned[2], turned[1])]
        assert np.array_equal(read, turned[orientation - 1])
    with Image.open(path) as opened:
        forms = [path.read_bytes(), opened, torch.from_numpy(read.copy()), (read / 255).transpose(2, 0, 1)]
        for form in forms:
            assert np.array_equal(np.asarray(load_images(form)[0]), read)


def test_what_the_caller_writes_later_is_not_in_the_picture() -> None:
    tensor = torch.zeros(4, 5, 3, dtype=torch.uint8)
    data = bytearray(b"")
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4)).save(buffer, "PNG")
    data += buffer.getvalue()
    pictures = load_images([tensor, data])
    tensor[:] = 255
    data[:] = bytes(len(data))
    assert all(np.asarray(picture).max() == 0 for picture in pictures)
