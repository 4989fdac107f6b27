"""The images that the user names: finding them, checking their heads, decoding them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tam_fast.cli.console import ExitCode, Failure, one_line

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Source", "decode", "find_images"]


@dataclass
class Source:
    """One image that the user named.

    Parameters
    ----------
    name : str
        What the user wrote.
    file : Path or BytesIO
        Where it lies; the bytes of standard input.
    stem : str
        What its results are called.
    """

    name: str
    file: Path | io.BytesIO
    stem: str


def find_images(names: Sequence[str], max_pixels: int, fail: Callable[[str, Failure], None]) -> list[Source]:
    """Find the images and check their heads; without names, the sample scene that comes with the package.

    Parameters
    ----------
    names : sequence of str
        Paths, and "-" for standard input.
    max_pixels : int
        Larger images are refused.
    fail : callable
        Called with the name of each image that cannot be used and the reason; the others are still found.

    Raises
    ------
    Failure
        If standard input is named twice, or there is no name and no sample scene.
    """
    if not names:
        from tam_fast.demo import sample_scenes

        names = [str(path) for path in sample_scenes()[:1]]
        if not names:
            raise Failure(ExitCode.FILE, "this installation lacks the sample scenes; name an image")
    if list(names).count("-") > 1:
        raise Failure(ExitCode.USAGE, "IMAGE: expected '-' (standard input) at most once")

    def find(name: str) -> Source | None:
        try:
            return _find(name, max_pixels)
        except Failure as failure:
            fail(name, failure)
            return None

    return [source for name in names if (source := find(name)) is not None]


def _find(name: str, max_pixels: int) -> Source:
    """Check that a name is that of an image which is not too large, by its head alone."""
    if name == "-":
        source = Source(name, io.BytesIO(sys.stdin.buffer.read()), "stdin")
    else:
        path = Path(name)
        if not path.exists():
            raise Failure(ExitCode.FILE, "no such file")
        if path.is_dir():
            raise Failure(ExitCode.FILE, "expected an image file, got a folder")
        source = Source(name, path, path.stem)
    with _opened(source) as image:
        width, height = image.size
    if width * height > max_pixels:
        raise Failure(
            ExitCode.FILE,
            f"expected at most {max_pixels} pixels (--max-pixels), got {width} x {height} = {width * height}",
        )
    return source


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong with its file or decoder becomes one line."""
    from PIL import Image, UnidentifiedImageError

    limit = Image.MAX_IMAGE_PIXELS
    # --max-pixels takes the place of Pillow's limit, which would only warn at first.
    Image.MAX_IMAGE_PIXELS = None
    try:
        if isinstance(source.file, io.BytesIO):
            source.file.seek(0)
        with Image.open(source.file) as image:
            yield image
    except Failure:
        raise
    except UnidentifiedImageError as error:
        raise Failure(ExitCode.FILE, "not an image, or of a format that Pillow does not know") from error
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise Failure(ExitCode.FILE, f"the image cannot be read: {one_line(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def decode(source: Source) -> Image.Image:
    """Decode an image to upright RGB: the first frame, transparency on white, 16 and 32 bits scaled to 8."""
    from PIL import ImageOps

    with _opened(source) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        largest = values.max()
        # A whole-number format is 16 bits wide unless it holds more; a float is 0..1 or as large as it is.
        if image.mode == "F":
            top = 1.0 if largest <= 1.0 else 255.0 if largest <= 255.0 else largest
        else:
            top = max(65535.0, largest)
        image = Image.fromarray((values.clip(0.0, top) * (255.0 / top) + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
