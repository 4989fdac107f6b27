"""Explain a data set: :func:`run`."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tam_fast.dataset.durable import locked
from tam_fast.dataset.index import INDEX, known_parts, make_index, stamp
from tam_fast.dataset.local import explain_here
from tam_fast.dataset.manifest import MANIFEST, Manifest, differences
from tam_fast.dataset.models import ModelSpec, described, spec_of, versions
from tam_fast.dataset.parts import clean, part_path
from tam_fast.dataset.plan import Plan, Shard, changed, grown
from tam_fast.dataset.records import check_kept
from tam_fast.dataset.sources import Columns, Source, open_source
from tam_fast.dataset.worker import ATTEMPTS, Job, forget

__all__ = ["PROMPT", "Progress", "Report", "TooManyErrors", "run"]

PROMPT = "Describe this image."

# What stands in a folder before its manifest does.
_FIRST = re.compile(r"\.lock|files-[0-9a-f]{16}\.parquet(\.\d+\.unfinished)?|manifest\.json\.\d+\.unfinished")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    rows : int
        Done, those of earlier runs among them.
    total : int
    errors : int
        Error rows of this run.
    seconds : float
        Since this run began to explain.
    explained : int
        Rows of this run.
    """

    rows: int
    total: int
    errors: int
    seconds: float
    explained: int


@dataclass(frozen=True)
class Report:
    """What a run leaves.

    Attributes
    ----------
    output : Path
    rows : int
        In the data set.
    done : int
        Of them explained, or an error row; less than `rows` if the run was stopped.
    errors : int
        Error rows in the data set, those of earlier runs among them.
    explained : int
        Rows of this run.
    seconds : float
    """

    output: Path
    rows: int
    done: int
    errors: int
    explained: int
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether every row is there."""
        return self.done == self.rows


class TooManyErrors(RuntimeError):
    """There were more error rows than allowed; what was done stays."""


def run(
    source: Any,
    output: str | os.PathLike[str],
    *,
    model: Any = None,
    prompt: str = PROMPT,
    id: str | None = None,
    image: str | None = None,
    answer: str | None = None,
    engine: str = "local",
    maps: str = "tokens",
    maps_format: str = "uint8",
    shard_rows: int = 64,
    batch_size: int = 8,
    device: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    retry_errors: bool = False,
    max_errors: int | None = None,
    allow_outside: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    explain: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> Report:
    """Explain each row of a data set, and write the explanations as Parquet; go on where an earlier run ended.

    Parameters
    ----------
    source : path, sequence of mapping, or datasets.Dataset
        A folder of images, Parquet, Arrow, JSON lines or tar files; or rows in memory. See
        :func:`tam_fast.dataset.open_source`.
    output : path
        Folder of the parts. An earlier run's with the same configuration is gone on with; rows that came to the source
        since are added.
    model : str, Explainer or (model, processor), optional
        A model folder or a model hub id; the embedded model if not given.
    prompt : str
        What each image is asked, or the name of the column (Parquet, Arrow, JSON; tar: the ending of a member) that
        holds each row's prompt. A single word must be a column, where the input has any.
    id, image, answer : str, optional
        Columns that hold a row's id, its image or images (several separated by commas), and an answer that is
        explained in place of a generated one.
    engine : "local" or "ray"
    maps : str
        Which maps are kept: ``"tokens"``, ``"words"``, ``"none"`` or ``"top:K"``.
    maps_format : "uint8" or "float16"
    shard_rows : int
        Rows of a part. A crash costs at most the work of one, on each worker.
    batch_size : int
        Rows that run together.
    device, dtype : str, optional
        Of a model that is loaded.
    overwrite : bool
        Begin anew: what an earlier run wrote is removed.
    retry_errors : bool
        Explain rows anew that became error rows.
    max_errors : int, optional
        Stop when this run has more error rows.
    allow_outside : bool
        Take images outside the source's folder.
    progress : callable, optional
        Given a :class:`Progress` after each batch.
    stop : threading.Event, optional
        Once it is set, the shards at work are ended and the run returns.
    explain : mapping, optional
        Further arguments of ``Explainer.explain``: ``max_new_tokens``, ``method``, ...
    **engine_options
        Of the engine: for ``"ray"`` ``workers``, ``gpus_per_worker`` and ``address``.

    Returns
    -------
    Report

    Raises
    ------
    ValueError, TypeError
        If an argument is not what is expected, the source changed, or `output` holds another data set: each difference
        is named.
    tam_fast.dataset.Locked
        If another process writes to `output`.
    tam_fast.dataset.TooManyErrors
        See `max_errors`.
    """
    check_kept(maps)
    choices = (("engine", engine, ("local", "ray")), ("maps_format", maps_format, ("uint8", "float16")))
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    for name, number in (("shard_rows", shard_rows), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {number!r}")
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a text, got {type(prompt).__name__}")
    if engine == "local" and engine_options:
        raise TypeError(f"{next(iter(engine_options))}: expected none with engine='local'")
    spec = spec_of(model, device, dtype)
    columns, prompt = _columns(source, prompt, Columns(id, image, None, answer), allow_outside)
    rows = open_source(source, columns, allow_outside=allow_outside)
    explainer = spec.load()
    spec = ModelSpec(spec.name, spec.device, spec.dtype, explainer if engine == "local" else spec.explainer)
    arguments = {"prompt": prompt, **(explain or {})}
    config = {
        "model": dict(described(explainer)),
        "explain": {name: _plain(value) for name, value in arguments.items()},
        "columns": columns.given(),
        "maps": maps,
        "maps_format": maps_format,
        "schema": 1,
    }
    folder = Path(os.fsdecode(output))
    _make(folder)
    with locked(folder):
        began = time.perf_counter()
        manifest = _manifest(folder, rows, source, config, shard_rows, overwrite)
        clean(folder)
        job = Job(folder, manifest.plan, rows, manifest.digest, arguments, batch_size, maps, maps_format)
        # What the index was made of need not be opened again.
        known = known_parts(folder, manifest.digest)
        waiting = [shard for shard in manifest.plan.shards() if not _is_known(job, shard, known)]
        begun = {path.stem for path in (folder / ATTEMPTS).glob("shard-*.jsonl")}
        undone = {shard.number for shard in waiting}
        for shard in manifest.plan.shards() if begun else ():
            # Killed after its part was written.
            if f"shard-{shard.number:05d}" in begun and shard.number not in undone:
                forget(folder, shard)
        if retry_errors:
            waiting = sorted({*waiting, *_with_errors(job, folder, waiting)}, key=lambda shard: shard.number)
        counter = _Counter(manifest.plan.rows, sum(shard.rows for shard in waiting), progress, max_errors)
        try:
            if waiting:
                explain_here(job, spec, waiting, counter.add, stop or threading.Event())
        finally:
            parts = [path for shard in manifest.plan.shards() if (path := part_path(folder, shard)).is_file()]
            index = make_index(folder, parts, manifest.digest)
        errors = sum(status != "ok" for status in index["status"].to_pylist())
        seconds = time.perf_counter() - began
        return Report(folder, manifest.plan.rows, index.num_rows, errors, counter.explained, seconds)


def _columns(source: Any, prompt: str, columns: Columns, allow_outside: bool) -> tuple[Columns, str]:
    """Tell a column of prompts from a prompt.

    Raises
    ------
    ValueError
        If it is one word, and the input has columns, but none of this name: it is taken for neither.
    """
    names = open_source(source, columns, allow_outside=allow_outside).names()
    if prompt in names:
        return replace(columns, prompt=prompt), PROMPT
    if names and prompt.isidentifier():
        raise ValueError(f"prompt: expected a sentence or one of the columns {', '.join(names)}, got {prompt!r}")
    return columns, prompt


class _Counter:
    """Adds up what workers finish, tells the caller, and stops them at too many errors."""

    def __init__(
        self, total: int, waiting: int, progress: Callable[[Progress], None] | None, max_errors: int | None
    ) -> None:
        self._total, self._done = total, total - waiting
        self._progress, self._most = progress, max_errors
        self._began = time.perf_counter()
        self.explained = self.errors = 0

    def add(self, rows: int, errors: int) -> None:
        self.explained += rows
        self.errors += errors
        if self._progress is not None:
            seconds = time.perf_counter() - self._began
            self._progress(Progress(self._done + self.explained, self._total, self.errors, seconds, self.explained))
        if self._most is not None and self.errors > self._most:
            raise TooManyErrors(f"max_errors: expected at most {self._most} error rows, got {self.errors}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _make(folder: Path) -> None:
    """Make the output's folder; what is not ours is left alone."""
    if folder.is_dir():
        names = [path.name for path in folder.iterdir()]
        strange = [name for name in names if not _FIRST.fullmatch(name)]
        if strange and MANIFEST not in names:
            raise ValueError(
                f"output: expected an empty folder or a data set of ours in {folder}, got {strange[0]!r} there"
            )
    elif folder.exists():
        raise ValueError(f"output: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)


def _manifest(
    folder: Path, source: Source, given: Any, config: Mapping[str, Any], shard_rows: int, overwrite: bool
) -> Manifest:
    """Read the manifest that is there and see that it fits, or plan the input and write it."""
    if overwrite:
        _remove(folder)
    files = list(source.files())
    described = {"kind": source.kind, "path": str(given) if isinstance(given, (str, os.PathLike)) else None}
    try:
        old = Manifest.read(folder)
    except FileNotFoundError:
        plan = Plan(files, shard_rows, [sum(file.rows for file in files)])
        if not plan.rows:
            raise ValueError(f"input: expected at least one row, got none in {given!r}") from None
        _check_ids(source, plan)
        manifest = Manifest(plan, described, config, versions())
        manifest.write(folder)
        return manifest
    found = differences(old.config, config)
    if found:
        raise ValueError(
            f"output: expected the configuration that {folder} was made with, got another: {'; '.join(found)}; "
            f"overwrite begins anew"
        )
    why = changed(old.plan.files, files)
    if why:
        raise ValueError(f"input: expected the files that {folder} was made of, {why}; overwrite begins anew")
    plan = grown(old.plan, files)
    if plan is not old.plan:
        _check_ids(source, plan)
        old = Manifest(plan, old.input, old.config, old.versions)
        old.write(folder)
    return old


def _check_ids(source: Source, plan: Plan) -> None:
    """Raise ValueError if two rows have one id."""
    seen: dict[str, str] = {}
    for file in plan.files:
        names = source.ids(file)
        for number, name in enumerate(names or ()):
            place = f"{file.path}:{number}"
            if name in seen:
                raise ValueError(f"id: expected ids that are unique, got {name!r} in {seen[name]} and {place}")
            seen[name] = place


def _remove(folder: Path) -> None:
    """Remove what an earlier run wrote, its manifest last: until then it can be overwritten again."""
    for pattern in ("part-*.parquet", ".part-*.parquet", INDEX):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / ATTEMPTS, ignore_errors=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob("files-*.parquet"):
        path.unlink()


def _is_known(job: Job, shard: Shard, known: Mapping[str, str]) -> bool:
    path = part_path(job.output, shard)
    try:
        if known.get(path.name) == stamp(path):
            return True
    except OSError:
        return False
    return job.is_done(shard)


def _with_errors(job: Job, folder: Path, waiting: list[Shard]) -> list[Shard]:
    """Find the shards whose parts hold error rows."""
    import pyarrow.parquet as pq

    begun = {shard.number for shard in waiting}
    found: list[Shard] = []
    for shard in job.plan.shards():
        if shard.number in begun:
            continue
        if "error" in pq.read_table(part_path(folder, shard), columns=["status"])["status"].to_pylist():
            found.append(shard)
    return found
