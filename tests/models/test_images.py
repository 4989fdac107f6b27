"""One image, one reading: files, PIL images and arrays give one picture, and what is none is refused in one line."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest_models import PROMPT, llava_processor, qwen_model, qwen_processor
from PIL import Image, ImageCms, features

from tam_fast.models.colours import to_rgb
from tam_fast.models.images import check_sizes, load_images, read_head, read_image
from tam_fast.models.inputs import load_images as same_load_images
from tam_fast.models.inputs import prepare_inputs

RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
# Formats that Pillow writes, what of a ramp is lost in them, and how far off a saved grey may be.
LOSSES = {
    **dict.fromkeys(("BMP", "DDS", "ICO", "IM", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"), 0),
    **dict.fromkeys(("MSP", "XBM", "DIB", "SPIDER"), 0),
    "JPEG": 3,
    "JPEG2000": 1,
    "WEBP": 5,
    "AVIF": 4,
    "GIF": 8,
    "BLP": 0,
}


def _lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert made is not None
    return made


def _words(order: str) -> Image.Image:
    data = (RAMP.astype(np.uint16) * 257).astype(np.dtype(np.uint16).newbyteorder(">" if order == "B" else "<"))
    return Image.frombytes(f"I;16{order}", (256, 8), data.tobytes())


def _ramps() -> dict[str, Image.Image]:
    """The same ramp in every mode of Pillow that can hold it."""
    grey = Image.fromarray(RAMP)
    colour = grey.convert("RGB")
    straight = {mode: colour.convert(mode) for mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")}
    scaled = {
        "I;16": Image.fromarray(RAMP.astype(np.uint16) * 257),
        "I;16L": _words("L"),
        "I;16B": _words("B"),
        "I of 8 bits": grey.convert("I"),
        "I of 16 bits": Image.fromarray(RAMP.astype(np.int32) * 257),
        "I of 31 bits": Image.fromarray(RAMP.astype(np.int32) * 2**23),
        "I below zero": Image.fromarray(RAMP.astype(np.int32) * 16 - 1000),
        "F to 1": Image.fromarray(RAMP.astype(np.float32) / 255),
        "F to 255": Image.fromarray(RAMP.astype(np.float32)),
        "F to 1e6": Image.fromarray(RAMP.astype(np.float32) * (1e6 / 255)),
        "F -1 to 1": Image.fromarray(RAMP.astype(np.float32) / 127.5 - 1),
    }
    alpha = {
        "L": grey,
        "P": grey.convert("P"),
        "LA": grey.convert("LA"),
        "La": grey.convert("LA").convert("La"),
        "PA": grey.convert("P").convert("PA"),
        "RGBa": colour.convert("RGBA").convert("RGBa"),
        "LAB": _lab(colour),
    }
    return {**straight, **scaled, **alpha}


RAMPS = _ramps()


def _error(picture: Image.Image) -> int:
    values = np.asarray(picture).astype(int)
    assert picture.mode == "RGB"
    assert values.shape == (8, 256, 3)
    return int(np.abs(values - RAMP[..., None]).max())


@pytest.mark.parametrize("mode", RAMPS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_ramp_is_the_same_in_every_mode_and_format(mode: str, tmp_path: Path) -> None:
    image = RAMPS[mode]
    before = image.copy()
    loss = {"LAB": 2, "YCbCr": 1}.get(mode, 0)
    picture = load_images(image)[0]
    assert _error(picture) <= loss
    assert picture.info == {}
    assert load_images([picture])[0].tobytes() == picture.tobytes(), "what was read is read the same again"
    assert image.tobytes() == before.tobytes()
    written = 0
    for kind, worse in LOSSES.items():
        path = tmp_path / kind
        try:
            image.save(path, kind)
        except (OSError, ValueError, KeyError, NotImplementedError, SystemError):
            continue  # this format does not hold this mode, or Pillow was built without it
        read, more = read_image(path)
        assert not more
        assert load_images(path)[0].tobytes() == read.tobytes(), kind
        with Image.open(path) as opened:
            assert load_images(opened)[0].tobytes() == read.tobytes(), kind
        assert read_image(io.BytesIO(path.read_bytes()), 10**6)[0].tobytes() == read.tobytes(), kind
        wide = mode.startswith(("I", "F"))
        if not (
            wide and kind in ("WEBP", "GIF", "AVIF", "PPM", "SPIDER", "JPEG2000")
        ):  # Pillow clips as it writes those
            assert _error(read) <= loss + worse, kind
            written += 1
    assert written or mode in ("RGBX", "I;16L", "La", "RGBa", "HSV", "PA")


def test_black_and_white() -> None:
    image = Image.fromarray(RAMP > 100)
    assert image.mode == "1"
    assert np.array_equal(np.asarray(load_images(image)[0]), np.where(RAMP > 100, 255, 0)[..., None].repeat(3, 2))


def test_values_that_are_no_numbers() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0, 0.5, 1]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 255, 0, 0, 128, 255]
    assert not np.asarray(to_rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))).any()
    assert not np.asarray(to_rgb(Image.fromarray(np.full((2, 2), -7, np.int32)))).any()
    dark = Image.fromarray(np.full((2, 2), 300, np.uint16))
    assert np.asarray(to_rgb(dark)).max() == 1, "16 bits are 16 bits, however dark"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA", "P", "RGB", "L", "I;16"])
def test_transparency_is_white(mode: str, tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    if mode in ("RGB", "L"):
        image = Image.new(mode, (4, 2), (9, 9, 9) if mode == "RGB" else 9)
        image.info["transparency"] = (9, 9, 9) if mode == "RGB" else 9
    elif mode == "I;16":
        image = Image.fromarray(np.full((2, 4), 700, np.uint16))
        image.info["transparency"] = 700
    elif mode == "P":
        image = Image.new("P", (4, 2), 1)
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.info["transparency"] = bytes([255, 0])
    elif mode == "PA":
        image = clear.convert("RGB").convert("P").convert("PA")
        image.putalpha(clear.getchannel("A"))
    else:
        image = clear.convert("LA").convert(mode) if mode in ("LA", "La") else clear.convert(mode)
    values = np.asarray(load_images(image)[0])
    assert (values[1, 1:] == 255).all()
    if mode in ("RGBA", "LA", "La", "RGBa", "PA"):
        assert (values[0, 0] < 255).all()
    try:
        image.save(tmp_path / "x.png")
    except OSError:
        return
    assert np.array_equal(np.asarray(load_images(tmp_path / "x.png")[0]), values)


def test_half_transparent() -> None:
    assert load_images(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))[0].getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_in_files_and_images(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked = Image.new("RGB", (30, 20), "white")
    marked.paste("black", (0, 0, 8, 8))
    marked.save(tmp_path / "x.png", exif=exif)
    read = load_images(tmp_path / "x.png")[0]
    assert read.size == ((30, 20) if orientation < 5 else (20, 30))
    with Image.open(tmp_path / "x.png") as opened:
        assert load_images(opened)[0].tobytes() == read.tobytes()
    assert load_images(read)[0].tobytes() == read.tobytes(), "it is turned once"


def test_the_first_frame_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for kind in ("gif", "png", "webp", "tif"):
        if kind == "webp" and not features.check("webp"):
            continue
        path = tmp_path / f"x.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        with pytest.warns(UserWarning, match=rf"images\[1\]: '.*x.{kind}' has more than one frame") as record:
            picture = load_images([frames[0], path])[1]
        assert record[0].filename == __file__
        assert np.abs(np.asarray(picture)[0, 0].astype(int) - [255, 0, 0]).max() < 4
    with Image.open(tmp_path / "x.gif") as opened, warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.seek(1)
        assert load_images(opened)[0].getpixel((0, 0)) == (0, 0, 255), "a frame that was chosen"


# Of nearly any of them a byte may be changed so that Pillow raises something of its own.
FORMATS = sorted(set(LOSSES) | {"EPS", "ICNS", "MPO", "PDF", "PALM", "WMF", "GRIB", "BUFR", "HDF5"})


def _damaged(kind: str, rng: np.random.Generator) -> Iterator[bytes]:
    picture = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8))
    for mode in ("RGB", "P", "L", "1", "F"):
        buffer = io.BytesIO()
        try:
            picture.convert(mode).save(buffer, kind)
        except (OSError, ValueError, KeyError, NotImplementedError, SystemError):
            continue
        whole = np.frombuffer(buffer.getvalue(), np.uint8)
        for index in range(4 if kind == "ICNS" else 50):
            data = whole.copy()
            data[rng.integers(0, min(300, data.size), 1 + index % 4)] = rng.integers(0, 256)
            yield data[: rng.integers(0, data.size)].tobytes() if index % 5 == 4 else data.tobytes()


def _opened(path: Path) -> Image.Image | None:
    try:
        return Image.open(path)
    except Exception:  # the caller's own affair
        return None


def _wrong(read: Any, what: Any) -> str | None:
    """What is wrong with the error that reading ends in, if it ends in one."""
    try:
        read(what)
    except Exception as error:
        good = type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 400
        return None if good else repr(error)
    return None


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_an_image_or_a_value_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in _damaged(kind, np.random.default_rng(3)):
        path.write_bytes(data)
        assert _wrong(load_images, path) is None
        assert _wrong(lambda file: read_image(file, 10**6), io.BytesIO(data)) is None
        image = _opened(path)
        assert image is None or _wrong(load_images, image) is None


@pytest.mark.parametrize(
    "kind",
    [RuntimeError, NotImplementedError, OverflowError, SyntaxError, MemoryError, KeyError, RecursionError, EOFError],
)
def test_whatever_a_decoder_raises(kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def load(*_: Any) -> None:
        raise kind("internal\nstate 0x7f")

    from PIL import PngImagePlugin

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ValueError, match=r"x.png' \(the image cannot be read: ") as caught:
        load_images(tmp_path / "x.png")
    assert "0x7f" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value.__cause__.__cause__, kind)


class _FakeArray:
    """What jax, cupy and tensorflow have in common."""

    def __array__(self) -> Any:
        raise AssertionError("is not to be read")


PIXELS = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.ma.masked_array(PIXELS), ValueError, "with a mask: fill it first"),
        (PIXELS / 255, ValueError, r"float64: put the channels of floats first, or convert them to bytes"),
        (PIXELS.astype(int), ValueError, r"int64: scale it to 0 to 255 and convert it to uint8"),
        (PIXELS.astype(object), ValueError, "of object"),
        (PIXELS.astype(bool), ValueError, "of bool"),
        (PIXELS.transpose(2, 0, 1), ValueError, r"transpose\(1, 2, 0\)"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), ValueError, r"\(3, 4, 5\) of uint8: .*permute\(1, 2, 0\)"),
        (torch.zeros(4, 5, 3), ValueError, r"\(4, 5, 3\) of float32: put the channels of floats first"),
        (torch.full((3, 4, 5), 255.0), ValueError, r"floats in \[0, 1\], got .*, from 255 to 255"),
        (np.full((3, 4, 5), -0.01), ValueError, r"from -0.01 to -0.01"),
        ([torch.full((3, 4, 5), torch.nan)], ValueError, r"images\[0\]: .* from nan to nan"),
        (torch.zeros(3, 0, 5), ValueError, r"\(3, 0, 5\)"),
        (torch.zeros(2, 3, 4, 5), ValueError, r"list\(array\)"),
        (torch.zeros(3, 4, 5, dtype=torch.complex64), ValueError, "of complex64"),
        (PIXELS[None], ValueError, r"list\(array\)"),
        (PIXELS[..., :1], ValueError, r"\(4, 5, 1\)"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"\(4, 5, 4\)"),
        (_FakeArray(), TypeError, "_FakeArray: make it a numpy array"),
        (PIXELS.tolist(), TypeError, r"images\[0\]: .* got list: lists do not nest"),
        ((image for image in [PIXELS]), TypeError, "generator: give several images as a list"),
        ({"a.png"}, TypeError, "set: give several images as a list"),
        ({"a": PIXELS}, TypeError, "dict"),
        (b"a.png", ValueError, r"expected the bytes of an image file, got 5 bytes \(not an image"),
        (b"", ValueError, r"got 0 bytes \(not an image"),
        (io.BytesIO(b""), TypeError, r"BytesIO: give what it reads, file.read\(\), or the path"),
        (Image.new("RGB", (0, 5)), ValueError, "at least one pixel, got 0 x 5"),
        ("", FileNotFoundError, "no file at ''"),
        ("a\0b", FileNotFoundError, "no file at"),
        (".", FileNotFoundError, r"the folder '\.'"),
        ("https://example.com/a.png", ValueError, "the URL 'https://example.com/a.png': download it"),
        (Path("https://example.com/a.png"), ValueError, "the URL .*: download it"),
        ("HTTP://example.com/" + "a" * 5000, ValueError, "the URL .*: download it"),
        ("s3://bucket/a.png", ValueError, "the URL"),
        ("file:///a.png", ValueError, "the URL 'file:///a.png': give the path itself"),
        ("data:image/png;base64," + "A" * 5000, ValueError, "a data URI of 5022 characters: decode it"),
        ("data:,A", ValueError, "a data URI of 7 characters"),
        ("iVBORw0KGgo" * 500, ValueError, "5500 characters, too long for a file's name"),
    ],
)
def test_what_would_be_misread_is_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_images(image)
    assert str(caught.value).startswith("images")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_arrays_and_paths_of_other_kinds_are_taken(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")

    class Text(str):
        __slots__ = ()

    for image in (pixels, np.asfortranarray(pixels), pixels[:, ::-1][:, ::-1], Text(tmp_path / "x.png")):
        assert np.array_equal(np.asarray(load_images(image)[0]), pixels)
    picture = load_images(pixels)[0]
    before = picture.tobytes()
    pixels[:] = 0
    assert picture.tobytes() == before
    (tmp_path / "data:x").write_bytes((tmp_path / "x.png").read_bytes())
    assert load_images(tmp_path / "data:x")[0].size == (5, 6), "a file that is there"
    assert load_images is same_load_images


def test_an_image_whose_file_was_closed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pass
    with pytest.raises(ValueError, match=r"images: .* its file has been closed"):
        load_images(image)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limits_hold_for_what_lies_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon of 16 x 16 by its head, 200 x 200 within."""
    limit = Image.MAX_IMAGE_PIXELS
    inner = io.BytesIO()
    Image.new("RGB", (200, 200)).save(inner, "PNG")
    head = bytes([0, 0, 1, 0, 1, 0, 16, 16, 0, 0, 1, 0, 32, 0]) + len(inner.getvalue()).to_bytes(4, "little")
    (tmp_path / "x.ico").write_bytes(head + (22).to_bytes(4, "little") + inner.getvalue())
    with pytest.raises(ValueError, match=r"at most 1001 pixels \(--most\)"):
        read_image(tmp_path / "x.ico", 1001, "--most")
    Image.new("RGB", (60, 60)).save(tmp_path / "x.png")
    for most in (3599, 1000):
        with pytest.raises(ValueError, match=f"at most {most} pixels .--most., got 60 x 60 = 3600"):
            read_head(tmp_path / "x.png", most, "--most")
    assert read_head(tmp_path / "x.png", 3600) == (60, 60)
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    message = r"at most 2000 pixels \(twice PIL.Image.MAX_IMAGE_PIXELS\), got 60 x 60 = 3600"
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "x.png")


def test_a_limit_that_is_set_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by another thread, while a file is read without a limit of its own."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (6, 6)).save(tmp_path / "x.png")
    opened = Image.open

    def open_later(*arguments: Any, **options: Any) -> Any:
        Image.MAX_IMAGE_PIXELS = 12_345
        return opened(*arguments, **options)

    monkeypatch.setattr(Image, "open", open_later)
    try:
        read_image(tmp_path / "x.png")
        assert Image.MAX_IMAGE_PIXELS == 12_345
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize("size", [(1, 50_000), (4, 100_000), (100_000, 4)])
def test_thin_pictures_are_refused_before_a_processor_starts(size: tuple[int, int]) -> None:
    thin = Image.new("RGB", size)
    shown = re.escape(f"images[1]: expected a picture less thin, got {size[0]} x {size[1]}")
    for processor in (llava_processor(size=336), qwen_processor()):
        with pytest.raises(ValueError, match=shown):
            check_sizes(processor, [Image.new("RGB", (60, 40)), thin])
        check_sizes(processor, [Image.new("RGB", (40, 4000))])
    processor = qwen_processor()
    called: list[Any] = []
    model = qwen_model(processor)
    processor.image_processor.preprocess = lambda *a, **k: called.append(a)
    with pytest.raises(ValueError, match="images: expected a picture less thin"):
        prepare_inputs(model, processor, [thin], PROMPT)
    assert not called


def test_sizes_that_a_processor_bounds_itself_are_taken() -> None:
    from types import SimpleNamespace

    thin = Image.new("RGB", (1, 50_000))
    fixed = SimpleNamespace(image_processor=SimpleNamespace(size={"height": 336, "width": 336}))
    check_sizes(fixed, [thin])
    check_sizes(SimpleNamespace(image_processor=SimpleNamespace(size={"shortest_edge": 9}, do_resize=False)), [thin])
    padded = SimpleNamespace(size={"height": 9, "width": 9}, do_pad=True, pad_to_square=len)
    with pytest.raises(ValueError, match="makes a square of it, which makes 2500000000 pixels"):
        check_sizes(SimpleNamespace(image_processor=padded), [thin])
    check_sizes(SimpleNamespace(image_processor=padded), [Image.new("RGB", (8000, 6000))])
    with pytest.raises(ValueError, match="less thin"):
        check_sizes(SimpleNamespace(), [thin])
