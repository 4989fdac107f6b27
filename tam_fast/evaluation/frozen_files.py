"""The files of frozen answers: the manifest, a line an answer, and who may write them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tam_fast.dataset.durable import Locked, read_lines, sync_folder, write_whole

__all__ = [
    "MANIFEST",
    "Answer",
    "file_name",
    "held",
    "new_manifest",
    "only_writer",
    "read_answers",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "manifest.json"

_FORMAT = "tam_fast frozen answers"
_VERSION = 1
_FILES = "answers*.jsonl"


@dataclass(frozen=True)
class Answer:
    """One answer, or why there is none.

    Attributes
    ----------
    id : str
        The item's.
    index : int
        Its place in the data set.
    prompt : str
        What was asked.
    text : str
        The answer; without a thinking section.
    token_ids : tuple of int (T,)
        All that was said, a thinking section too, without the end mark.
    end_ids : tuple of int
        The end mark that generation stopped at; empty if it reached its limit, and of a given answer.
    first : int
        Where the answer begins in `token_ids`, behind a thinking section.
    given : str or None
        The answer as the data set has it, where it has one.
    image : str
        SHA-256 of the image: see :meth:`Item.read_image`.
    size : (int, int)
        Width and height of the upright image.
    seconds : float
        What it took.
    run : int
        Which entry of the manifest's ``runs`` made it.
    error : str
        Why there is no answer; the rest is empty then.
    """

    id: str
    index: int
    prompt: str = ""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    first: int = 0
    given: str | None = None
    image: str = ""
    size: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    run: int = 0
    error: str = ""


def new_manifest(root: Path, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Make a manifest for a folder that has none.

    Raises
    ------
    ValueError
        If the folder has answers all the same.
    """
    if any(root.glob(_FILES)):
        raise ValueError(f"output: expected a folder of frozen answers, got {root}, which has no {MANIFEST}")
    return {"format": _FORMAT, "version": _VERSION, "model": model, "config": dict(config), "runs": []}


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write a folder's manifest: whole, or not at all."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_whole(root / MANIFEST, text.encode("utf-8", "surrogatepass"))


def read_manifest(root: Path) -> dict[str, Any] | None:
    """Read a folder's manifest; None if there is none.

    Raises
    ------
    ValueError
        If it is none of ours, or of another version.
    """
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"output: expected JSON, got {path} ({error})") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"output: expected a folder of frozen answers, got {root}, whose {MANIFEST} is another's")
    if document.get("version") != _VERSION:
        raise ValueError(
            f"output: expected version {_VERSION} of frozen answers, got {document.get('version')!r} in {path}"
        )
    return document


def read_answers(root: Path) -> dict[str, Answer]:
    """Read all files of answers: the first answer of an item counts, or else its last error."""
    found: dict[str, Answer] = {}
    for path in sorted(root.glob(_FILES)):
        for entry in read_lines(path):
            answer = _answer(entry, path)
            if answer.id not in found or found[answer.id].error:
                found[answer.id] = answer
    return found


def _answer(entry: Any, path: Path) -> Answer:
    names = {part.name for part in fields(Answer)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise ValueError(f"output: expected frozen answers, a line each, in {path}, got {str(entry)[:80]}")
    lists = {name: tuple(entry[name]) for name in ("token_ids", "end_ids", "size")}
    return Answer(**{**entry, **lists})


def file_name(shard: tuple[int, int] | None) -> str:
    """Return the name of the file that a shard's answers go to."""
    return "answers.jsonl" if shard is None else f"answers-{shard[0]:05d}-of-{shard[1]:05d}.jsonl"


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold a file of answers, which the system lets go of when the process ends, however it ends."""
    made = not path.exists()
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"output: expected answers that nobody writes, another process writes {path}") from error
        if made:
            sync_folder(path.parent)
        yield


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold a folder's manifest; waits for those who do."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
