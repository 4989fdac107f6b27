"""What a data set was made of, and of what: ``manifest.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tam_fast.dataset.durable import write_whole
from tam_fast.dataset.plan import Plan

__all__ = ["FORMAT", "MANIFEST", "VERSION", "Manifest", "Outline", "differences", "digest"]

FORMAT = "tam_fast data set"
VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Outline:
    """What a manifest says without its table of files, which may be long.

    Attributes
    ----------
    document : mapping
        The whole of ``manifest.json``.
    size : int
        Rows of a shard.
    runs : sequence of int
        See :class:`tam_fast.dataset.plan.Plan`.
    config : mapping
    """

    document: Mapping[str, Any]
    size: int
    runs: Sequence[int]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Outline:
        """Read that of a folder; raises as :meth:`Manifest.read`."""
        path = folder / MANIFEST
        try:
            document = json.loads(path.read_bytes())
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise ValueError(f'expected "format": "{FORMAT}"')
            if document.get("version") != VERSION:
                raise ValueError(f"expected version {VERSION}, got {document.get('version')!r}")
            runs = [int(rows) for rows in document["runs"]]
            return cls(document, int(document["shard_rows"]), runs, dict(document["config"]))
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Manifest:
    """The plan of a data set, and its configuration.

    Attributes
    ----------
    plan : Plan
    input : mapping
        Kind and path of the source.
    config : mapping
        All that the rows depend on: model, prompt, options of generation and maps. Plain data.
    versions : mapping of str to str
        Of the packages that made it first.
    """

    plan: Plan
    input: Mapping[str, Any]
    config: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration: a part counts only if its footer has the same."""
        return digest(self.config)

    def write(self, folder: Path) -> None:
        """Write it to a folder: the files' table first, then ``manifest.json``, which names it."""
        table = self.plan.encode()
        name = f"files-{hashlib.sha256(table).hexdigest()[:16]}.parquet"
        write_whole(folder / name, table)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "input": dict(self.input),
            "files": name,
            "shard_rows": self.plan.size,
            "runs": list(self.plan.runs),
            "config": dict(self.config),
            "versions": dict(self.versions),
        }
        text = json.dumps(document, indent=1, ensure_ascii=False).encode()
        write_whole(folder / MANIFEST, text)
        for other in folder.glob("files-*.parquet"):
            if other.name != name:
                other.unlink()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read that of a folder.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it is none of ours, or of another version, or the files' table is another.
        """
        path = folder / MANIFEST
        outline = Outline.read(folder)
        document = outline.document
        try:
            table = (folder / Path(document["files"]).name).read_bytes()
            if hashlib.sha256(table).hexdigest()[:16] not in document["files"]:
                raise ValueError(f"expected the files' table {document['files']} as it was written, got another")
            plan = Plan.decode(table, outline.size, outline.runs)
            return cls(plan, document["input"], outline.config, document["versions"])
        except FileNotFoundError as error:
            raise ValueError(f"{path}: expected the files' table beside it, got no {error.filename}") from error
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], under: Sequence[str] = ()) -> list[str]:
    """Name each entry in which two configurations differ: ``model.weights: 'a', now 'b'``."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, (*under, key))
        elif before != now:
            found.append(f"{'.'.join((*under, key))}: {_short(before)}, now {_short(now)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
