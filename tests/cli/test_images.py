"""Images that the command is given: formats, damage, size, standard input."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest_cli import FakeExplainer, assert_fails, run, save_image
from PIL import Image

from tam_fast.models.images import load_images


def test_standard_input(explainer: FakeExplainer, photo: Path) -> None:
    result = run("explain", "-", input=photo.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert Path("tam-fast-out/stdin.png").exists()
    assert_fails(run("explain", "-", "-", input=b""), 2, "'-' (standard input) at most once")
    assert_fails(run("explain", "-", input=b""), 3, "-: not an image")


def test_missing_samples(explainer: FakeExplainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tam_fast.demo.sample_scenes", list)
    assert_fails(run("explain"), 3, "this installation lacks the sample scenes")


def _seen(explainer: FakeExplainer, path: Path) -> Image.Image:
    result = run("explain", path, "-q", "-o", "out", "--force")
    assert result.exit_code == 0, result.stderr
    image = explainer.calls[-1]["images"][0]
    assert image.mode == "RGB"
    return image


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "YCbCr", "I;16", "F"])
def test_modes(explainer: FakeExplainer, tmp_path: Path, mode: str) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(ramp).astype(np.float32) / 255)
    else:
        image = ramp.convert("RGB").convert(mode)
    image.save(tmp_path / "x.tif", **({"compression": "raw"} if mode == "YCbCr" else {}))
    seen = np.asarray(_seen(explainer, tmp_path / "x.tif")).astype(int)
    assert seen.shape == (8, 64, 3)
    if mode not in ("1", "P"):  # those dither
        assert np.abs(seen[0, :, 0] - np.arange(0, 256, 4)).max() <= 6


def test_transparency_is_white(explainer: FakeExplainer, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    for name, picture in (("a.png", image), ("b.gif", image), ("c.png", image.convert("LA"))):
        picture.save(tmp_path / name)
        seen = _seen(explainer, tmp_path / name)
        assert seen.getpixel((3, 3)) == (255, 255, 255)
        assert seen.getpixel((0, 0)) != (255, 255, 255)


def test_rotation_of_the_camera_is_undone(explainer: FakeExplainer, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_image(tmp_path / "x.jpg", (48, 32), exif=exif)
    assert _seen(explainer, path).size == (32, 48)


def test_first_frame_of_an_animation(explainer: FakeExplainer, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert _seen(explainer, tmp_path / "x.gif").getpixel((4, 4)) == (255, 0, 0)
    result = run("explain", "x.gif", "-o", "again")
    assert "tam-fast: x.gif: more than one frame; the first one is taken\n" in result.stderr
    assert result.stderr.count("frame") == 1
    assert "frame" not in run("explain", "x.gif", "-q", "-o", "quietly").stderr


def test_the_library_sees_the_same(explainer: FakeExplainer, tmp_path: Path) -> None:
    """Files that could be read in more than one way."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    clear = Image.fromarray(noise)
    for name, image, options in (
        ("16.png", Image.fromarray(noise[..., 0].astype(np.uint16) * 200), {}),
        ("32.tif", Image.fromarray(noise[..., 0].astype(np.int32) * 90_000 - 5), {}),
        ("float.tif", Image.fromarray(noise[..., 0].astype(np.float32) / 300 - 0.2), {}),
        ("alpha.png", clear, {"exif": exif}),
        ("alpha.tif", clear.convert("LA"), {}),
        ("palette.png", clear.convert("RGB").quantize(7), {"transparency": bytes([0, 99, 255])}),
        ("keyed.png", clear.convert("RGB"), {"transparency": tuple(noise[3, 3, :3].tolist())}),
        ("ink.jpg", clear.convert("RGB").convert("CMYK"), {"exif": exif}),
    ):
        image.save(tmp_path / name, **options)
        assert _seen(explainer, tmp_path / name).tobytes() == load_images(tmp_path / name)[0].tobytes(), name


def test_urls_and_image_data_are_refused_in_a_short_line(explainer: FakeExplainer) -> None:
    for name, message in (
        ("https://example.com/a.png", "expected a file, got the URL 'https://example.com/a.png': download it"),
        ("file:///a.png", "give the path itself"),
        ("data:image/png;base64," + "A" * 5000, "got a data URI of 5022 characters"),
    ):
        result = run("explain", name)
        assert_fails(result, 3, message[:30])
        assert len(result.stderr) < 600
    assert explainer.calls == []


def test_files_that_are_no_images(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello\n" * 100)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "head.jpg").write_bytes(photo.read_bytes()[:20])
    for name, message in (
        ("text.jpg", "text.jpg: not an image, or of a format that Pillow does not know"),
        ("empty.png", "empty.png: not an image"),
        ("head.jpg", "head.jpg: "),
        ("missing.jpg", "missing.jpg: no such file"),
        (".", ".: expected an image file, got a folder"),
    ):
        assert_fails(run("explain", name), 3, message)
    assert explainer.calls == []


def test_truncated_image(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:-400])
    assert_fails(run("explain", "half.jpg"), 3, "half.jpg: the image cannot be read: image file is truncated")


def test_broken_png_chunk(explainer: FakeExplainer, tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png")
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT")
    data[place + 10 : place + 60] = b"\xff" * 50
    path.write_bytes(bytes(data))
    assert_fails(run("explain", "x.png"), 3, "x.png: the image cannot be read")


def _png_head(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def test_huge_images_are_refused_by_their_head(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_head(100_000, 100_000))
    limit = Image.MAX_IMAGE_PIXELS
    message = "expected at most 64000000 pixels (--max-pixels), got 100000 x 100000 = 10000000000"
    assert_fails(run("explain", "bomb.png"), 3, message)
    assert_fails(
        run("explain", photo, "--max-pixels", "100"), 3, "at most 100 pixels (--max-pixels), got 48 x 32 = 1536"
    )
    assert limit == Image.MAX_IMAGE_PIXELS
    assert run("explain", photo, "--max-pixels", "1536").exit_code == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("n" * 300 + ".png", "too "),
        ("x" * 5000, "too "),
        ("/tmp/" * 2000, "too "),
        ("", "'': no such file"),
        ("photo.jpg/", "no such file"),
        ("photo.jpg/x.png", "no such file"),
        ("loop.png", "the image cannot be read: Too many levels of symbolic links"),
        ("dangling.png", "no such file"),
        (".", "expected an image file, got a folder"),
        ("\udcff.png", "\ufffd.png: no such file"),
        ("data:image/png;base64," + "A" * 3000, "data URI"),
    ],
)
def test_one_bad_argument_does_not_end_a_batch(
    explainer: FakeExplainer, tmp_path: Path, photo: Path, bad: str, message: str
) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    result = run("explain", bad, photo, "-q")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert message in line
    assert len(line) < 450
    assert Path("tam-fast-out/photo.png").exists()


def test_unreadable_image(explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "secret.png":
            raise PermissionError(13, "Permission denied", str(self))
        return opens(self, *arguments, **options)

    Path("secret.png").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    result = run("explain", "secret.png", photo, "-q")
    assert result.exit_code == 3
    assert result.stderr == "tam-fast: error: secret.png: the image cannot be read: Permission denied\n"
    assert Path("tam-fast-out/photo.png").exists()
