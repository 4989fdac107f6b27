"""WebDataset's tar files: members of one stem are a row."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tam_fast.dataset.sources.rows import IMAGES, NOTHING, Columns, File, Known, Row, RowError, counted, id_of, is_text

__all__ = ["Tars"]

_MOST = 2**30
"""Bytes of a member; a larger one is not read."""


@dataclass
class _Sample:
    """The members of one stem: (offset, size) by ending, in small letters, without the first dot."""

    stem: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    trouble: str = ""


class Tars:
    """Tar files of samples: ``0001.jpg``, ``0001.json``, ``0001.txt`` are one row.

    The stem of a member is its path up to the first dot of its name. Names are never used as paths, and only regular
    members are read; members that hold pickles (``.pkl``, ``.pt``, ``.pth``) are never opened. An id is ``file:row``;
    with ``id="__key__"`` it is the stem, and else an entry of the ``.json`` member, as is every column that is no
    ending of a member.

    Parameters
    ----------
    root : Path
    names : sequence of str
        The files, relative to `root`.
    columns : Columns
        Endings without dot (``image="jpg"``, ``prompt="txt"``), or entries of the ``.json`` member. The image is by
        default the one member that is one.
    """

    kind = "tars"

    def __init__(self, root: Path, names: Sequence[str], columns: Columns) -> None:
        self._root, self._names, self._columns = root, list(names), columns
        self._samples = lru_cache(maxsize=4)(self._find)

    def files(self, known: Known = NOTHING) -> Sequence[File]:
        """List the files with their numbers of samples, from the members' heads."""
        return [counted(self._root, name, known, lambda name: len(self._samples(name))) for name in self._names]

    def read(self, file: File, start: int, stop: int) -> Sequence[Row]:
        """Read some samples."""
        with (self._root / file.path).open("rb") as data:
            return [
                self._row(data, sample, f"{file.path}:{start + k}")
                for k, sample in enumerate(self._samples(file.path)[start:stop])
            ]

    def names(self) -> Sequence[str]:
        """Return the endings of the first sample's members, and the entries of its ``.json``."""
        for name in self._names:
            for sample in self._samples(name)[:1]:
                with (self._root / name).open("rb") as data:
                    entries = _document(data, sample) if "json" in sample.members else {}
                return [*sample.members, *entries]
        return ()

    def ids(self, file: File) -> Sequence[str] | None:
        """Read the ids of a file; None if they follow from its path."""
        if self._columns.id is None:
            return None
        with (self._root / file.path).open("rb") as data:
            try:
                return [self._id(data, sample) for sample in self._samples(file.path)]
            except RowError as error:
                raise ValueError(f"{file.path}: {error}") from None

    def _find(self, name: str) -> list[_Sample]:
        found: list[_Sample] = []
        try:
            with tarfile.open(self._root / name, "r:") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    folder, _, base = member.name.rpartition("/")
                    first, dot, ending = base.partition(".")
                    if not dot or not first:
                        continue
                    stem = f"{folder}/{first}" if folder else first
                    if not found or found[-1].stem != stem:
                        found.append(_Sample(stem))
                    sample = found[-1]
                    if not member.isreg() or member.sparse is not None:
                        sample.trouble = f"expected regular members, got {member.name[:200]!r}, which is a link or none"
                    elif ending.lower() in sample.members:
                        sample.trouble = f"expected one member of an ending, got a second {member.name[:200]!r}"
                    else:
                        sample.members[ending.lower()] = (member.offset_data, member.size)
                # Cut where a member ends, nothing but the missing mark shows that there were more.
                if (self._root / name).stat().st_size <= archive.offset:
                    raise tarfile.ReadError("it ends without the mark of its end")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"input: expected a tar that is not compressed, {self._root / name}: {type(error).__name__}: {error}"
            ) from error
        return found

    def _row(self, data: Any, sample: _Sample, name: str) -> Row:
        try:
            if self._columns.id is not None:
                name = self._id(data, sample)
            if sample.trouble:
                raise RowError(sample.trouble)
            images = tuple(_content(data, sample, ending) for ending in self._endings(sample))
            prompt = self._text(data, sample, self._columns.prompt)
            return Row(name, images, prompt, self._text(data, sample, self._columns.answer))
        except RowError as error:
            return Row(name, error=str(error))

    def _endings(self, sample: _Sample) -> list[str]:
        if self._columns.image is not None:
            return [ending.lower().lstrip(".") for ending in self._columns.images]
        found = [ending for ending in sample.members if f".{ending}" in IMAGES]
        if len(found) != 1:
            raise RowError(f"image: expected one image in {sample.stem!r}, got {', '.join(sample.members) or 'none'}")
        return found

    def _text(self, data: Any, sample: _Sample, column: str | None) -> str | None:
        if column is None:
            return None
        if column in sample.members:
            try:
                return _content(data, sample, column).decode("utf-8")
            except UnicodeDecodeError as error:
                raise RowError(f"{column}: expected a text in UTF-8, got {error}") from None
        value = _document(data, sample).get(column)
        if value is not None and (not isinstance(value, str) or not is_text(value)):
            raise RowError(f"{column}: expected a text, got {type(value).__name__}")
        return value

    def _id(self, data: Any, sample: _Sample) -> str:
        if self._columns.id == "__key__":
            return id_of(sample.stem)
        return id_of(_document(data, sample).get(self._columns.id or ""))


def _content(data: Any, sample: _Sample, ending: str) -> bytes:
    if ending not in sample.members:
        raise RowError(f"expected a member .{ending} in {sample.stem!r}, got {', '.join(sample.members) or 'none'}")
    offset, size = sample.members[ending]
    if size > _MOST:
        raise RowError(f"expected a member of at most {_MOST} bytes, got {size} in .{ending} of {sample.stem!r}")
    data.seek(offset)
    content: bytes = data.read(size)
    if len(content) != size:
        raise RowError(f"expected {size} bytes in .{ending} of {sample.stem!r}, the file ends after {len(content)}")
    return content


def _document(data: Any, sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.members:
        raise RowError(f"expected a member .json in {sample.stem!r}, got {', '.join(sample.members) or 'none'}")
    try:
        found = json.loads(_content(data, sample, "json").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RowError(f"expected a JSON object in {sample.stem!r}, got {type(error).__name__}: {error}") from None
    if not isinstance(found, dict):
        raise RowError(f"expected a JSON object in {sample.stem!r}, got {type(found).__name__}")
    return found
