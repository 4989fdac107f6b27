"""Files that appear as a set: written beside, synced, renamed; whose they are; names that the file system can hold."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tam_fast.render.page import GENERATOR
from tam_fast.render.video import MARK

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMAT", "PICTURE_MARK", "check_replaceable", "encode_picture", "fitting_stem", "is_ours", "replace_files"]

FORMAT = "tam_fast.Explanation"
"""What the JSON file of an explanation says that it is."""

PICTURE_MARK = ("Software", "tam_fast")
"""The text in a PNG file that says who drew it; of JPEG and GIF it is the comment."""

# Those of TokenActivationMaps: an arrays file that has all of them is one of an explanation.
_ARRAYS = {"maps", "relevance", "scale", "flat", "context_ids", "target_ids", "token_ids", "offsets"}
_LONGEST_SUFFIX = len(".safetensors")
_HEADER = 1 << 20  # bytes that are read of a file to know whose it is
_JPEG = 65_500  # pixels of a side that a JPEG can have
_PATIENCE = 10.0  # seconds that another run may take to rename its set


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write files, all of them or none.

    Each is written beside its place and synced, and only when all of them are on the disk are they renamed. If that
    fails, those that were renamed are put back, so that a full disk, a limit or an interruption leaves the old set
    whole. A link is replaced itself; what it leads to stays. Of two runs that write the same names at the same time,
    one's set is there in the end, where the system can lock folders.

    Parameters
    ----------
    files : dict of Path to bytes
        What comes where. All in folders that exist.

    Raises
    ------
    OSError
        If one cannot be written; its `filename` is the file's. Nothing has changed then.
    """
    written: dict[Path, Path] = {}
    kept: dict[Path, Path] = {}
    done: list[Path] = []
    turns = ExitStack()
    try:
        for path, data in files.items():
            written[path] = _beside(path)
            try:
                _write(written[path], data)
            except OSError as error:
                raise _about(error, path) from error
        for folder in sorted({path.parent for path in files}):
            turns.enter_context(_turn(folder))
        for path, temporary in written.items():
            # Noted before it is done: an interruption between the two must not leave it unnoticed.
            done.append(path)
            if os.path.lexists(path):
                kept[path] = _beside(path)
                _keep(path, kept[path])
            try:
                temporary.replace(path)
            except OSError as error:
                raise _about(error, path) from error
    except BaseException:
        for path in reversed(done):
            _put_back(path, kept, new=not os.path.lexists(written[path]))
        raise
    finally:
        for left in (*written.values(), *kept.values()):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        turns.close()
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other run renames files in a folder, for a while; where folders cannot be locked, not at all."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # One that was stopped must not hold up all others.
                if time.monotonic() > deadline:
                    break
                time.sleep(0.005)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


def _put_back(path: Path, kept: dict[Path, Path], new: bool) -> None:
    """Bring back what was kept of a file; where nothing was there before, take away what is new."""
    try:
        if path not in kept:
            if new:
                path.unlink(missing_ok=True)
        elif os.path.lexists(kept[path]) and not _is_same(kept[path], path):
            kept[path].replace(path)
    except OSError:
        # Then it stays under its second name, rather than nowhere.
        kept.pop(path, None)


def _is_same(one: Path, other: Path) -> bool:
    return os.path.lexists(other) and os.path.samestat(one.lstat(), other.lstat())


def _about(error: OSError, path: Path) -> OSError:
    """Say of an error which file it was to be, rather than the name that was written beside."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _beside(path: Path) -> Path:
    """Make a new name in the folder of a file; short, so that it fits where the file's own does."""
    return path.with_name(f".tam-fast-{secrets.token_hex(8)}.tmp")


def _write(path: Path, data: bytes) -> None:
    # Not mkstemp(), which makes files private: these get what open() would have given.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            # Some file systems cannot sync; that they are full is another matter.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise


def _keep(path: Path, beside: Path) -> None:
    """Give a file a second name, under which it outlives being replaced."""
    if stat.S_ISDIR(path.lstat().st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        os.link(path, beside, follow_symlinks=False)
    except (OSError, NotImplementedError):
        # Without hard links the old file is away for a moment.
        path.replace(beside)


def _sync_folder(folder: Path) -> None:
    """Make renames outlast a loss of power, where folders can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_replaceable(paths: Iterable[Path], force: bool) -> None:
    """Refuse to replace what is no file of an explanation.

    Parameters
    ----------
    paths : iterable of Path
        Where files are to come.
    force : bool
        Replace files of others as well, but no folder, device or pipe.

    Raises
    ------
    FileExistsError
        If something is there that stays; the text begins with its path.
    OSError
        If it cannot be told what is there.
    """
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(mode) and path.exists():
            mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(f"{path} exists and is no file")
        if force:
            continue
        if not is_ours(path):
            raise FileExistsError(f"{path} exists and is not of an earlier run")
        if not os.access(path, os.W_OK):
            raise FileExistsError(f"{path} exists and is write-protected")


def is_ours(path: Path) -> bool:
    """Whether a file was written by Explanation.save, is a page, or a picture from the command; by its head alone."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER)
    except OSError:
        return False
    if path.suffix == ".json":
        return f'"format": "{FORMAT}"'.encode() in head[:200]
    if path.suffix.lower() == ".png":
        return head.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXt" + "\0".join(PICTURE_MARK).encode() in head[:4096]
    suffix = path.suffix.lower()
    if suffix in (".html", ".htm"):
        return GENERATOR.encode() in head[:1000]
    if suffix in (".jpg", ".jpeg", ".gif"):
        starts = b"GIF8" if suffix == ".gif" else b"\xff\xd8"
        return head.startswith(starts) and MARK in head[:4096]
    if suffix == ".mp4":
        return head[4:8] == b"ftyp" and _ends_with(path, MARK)
    length = int.from_bytes(head[:8], "little")
    try:
        names = json.loads(head[8 : 8 + length])
    except (ValueError, RecursionError):
        return False
    return isinstance(names, dict) and names.keys() >= _ARRAYS


def _ends_with(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(mark), os.SEEK_END)
            return file.read() == mark
    except OSError:
        return False


def encode_picture(picture: Image.Image, suffix: str) -> bytes:
    """Encode a picture as PNG, or as JPEG for ``.jpg`` and ``.jpeg``; what it holds says who drew it.

    Raises
    ------
    ValueError
        If the picture has more pixels on a side than a JPEG can have: 65,500.
    """
    made = io.BytesIO()
    if suffix.lower() in (".jpg", ".jpeg"):
        if max(picture.size) > _JPEG:
            raise ValueError(f"picture: expected at most {_JPEG} pixels a side for JPEG, got {picture.size}: take PNG")
        picture.convert("RGB").save(made, format="JPEG", quality=92, subsampling=0, comment=MARK)
    else:
        from PIL.PngImagePlugin import PngInfo

        mark = PngInfo()
        mark.add_text(*PICTURE_MARK)
        picture.save(made, format="PNG", pnginfo=mark)
    return made.getvalue()


def fitting_stem(folder: Path, stem: str) -> str:
    """Shorten a file's name so that its folder can hold it with any of our suffixes.

    Parameters
    ----------
    folder : Path
        Where the files are to come.
    stem : str
        Their name without suffix.

    Returns
    -------
    str
        `stem` itself if it fits; otherwise its beginning and eight digits that tell it from others of that beginning.
    """
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        most = 255
    most = max(most, 40) - _LONGEST_SUFFIX
    encoded = _bytes(stem)
    if len(encoded) <= most:
        return stem
    mark = "-" + hashlib.sha256(encoded).hexdigest()[:8]
    kept = stem[: most - len(mark)]
    while len(_bytes(kept)) > most - len(mark):
        kept = kept[:-1]
    return kept + mark


def _bytes(name: str) -> bytes:
    """What a file system keeps of a name."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        # Surrogates that stand for no byte: refused when the file is opened.
        return name.encode("utf-8", "surrogatepass")
