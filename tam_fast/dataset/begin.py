"""The beginning of a run: its folder, its manifest, and what of it is done."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tam_fast.dataset.attempts import Attempts, journal_name
from tam_fast.dataset.index import INDEX, parts_there
from tam_fast.dataset.manifest import MANIFEST, Manifest, differences
from tam_fast.dataset.models import versions
from tam_fast.dataset.parts import part_name
from tam_fast.dataset.plan import Plan, Shard, changed, grown
from tam_fast.dataset.sources import Columns, Source, open_source
from tam_fast.dataset.worker import ATTEMPTS, Job, forget

__all__ = ["PROMPT", "columns_and_prompt", "make_folder", "plan_or_go_on", "undone"]

PROMPT = "Describe this image."

# What stands in a folder before its manifest does.
_FIRST = re.compile(
    r"\.lock|files-[0-9a-f]{16}\.parquet(\.[0-9a-f]+\.unfinished)?|manifest\.json\.[0-9a-f]+\.unfinished"
)


def columns_and_prompt(
    source: Any, prompt: str, columns: Columns, allow_outside: bool = False
) -> tuple[Source, Columns, str]:
    """Open an input, and tell a column of prompts from a prompt.

    Raises
    ------
    ValueError
        If it is one word, and the input has columns, but none of this name: it is taken for neither. If the input has
        columns, but not those that are named.
    """
    rows = open_source(source, columns, allow_outside=allow_outside)
    names = rows.names()
    if prompt in names:
        columns = replace(columns, prompt=prompt)
        return open_source(source, columns, allow_outside=allow_outside), columns, PROMPT
    if names and prompt.isidentifier():
        raise ValueError(f"prompt: expected a sentence or one of the columns {', '.join(names)}, got {prompt!r}")
    return rows, columns, prompt


def make_folder(folder: Path, source: Any) -> None:
    """Make the output's folder; what is not ours is left alone."""
    if isinstance(source, (str, os.PathLike)):
        given, mine = Path(os.path.realpath(os.fsdecode(source))), Path(os.path.realpath(folder))
        if given.is_dir() and mine != given and mine.is_relative_to(given):
            raise ValueError(
                f"output: expected a folder outside the input {given}, whose rows it would be, got {folder}"
            )
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


def plan_or_go_on(
    folder: Path, source: Source, given: Any, config: Mapping[str, Any], shard_rows: int, overwrite: bool
) -> Manifest:
    """Read the manifest that is there and see that it fits, or plan the input and write it.

    Raises
    ------
    ValueError
        If it does not fit: what differs is named.
    """
    if overwrite:
        _remove(folder)
    described = {"kind": source.kind, "path": _absolute(given)}
    try:
        old = Manifest.read(folder)
    except FileNotFoundError:
        files = list(source.files())
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
    files = list(source.files({file.path: file for file in old.plan.files}))
    _check_same_input(folder, old, described, files)
    plan = grown(old.plan, files)
    if plan is not old.plan:
        _check_ids(source, plan)
        old = Manifest(plan, old.input, old.config, old.versions)
        old.write(folder)
    return old


def _check_same_input(folder: Path, old: Manifest, described: Mapping[str, Any], files: Sequence[Any]) -> None:
    """Raise ValueError if an input is none that a data set was made of, or one of its files changed."""
    why = changed(old.plan.files, files)
    if old.input.get("kind") != described["kind"]:
        why = f"{old.input.get('kind')}, now {described['kind']}"
    elif not why and old.input.get("path") != described["path"]:
        # It may have been moved; but another's rows must not be added to these.
        there = {file.path for file in files}
        gone = [file.path for file in old.plan.files if file.path not in there]
        if gone:
            why = f"those of {old.input.get('path')}, of which {gone[0]!r} is not in {described['path']}"
    if why:
        raise ValueError(f"input: expected the files that {folder} was made of, {why}; overwrite begins anew")


def _absolute(given: Any) -> str | None:
    if not isinstance(given, (str, os.PathLike)):
        return None
    return os.fsencode(os.path.realpath(os.fsdecode(given))).decode("utf-8", "backslashreplace")


def _check_ids(source: Source, plan: Plan) -> None:
    """Raise ValueError if two rows have one id."""
    seen: dict[str, int] = {}
    first = 0
    for file in plan.files:
        for number, name in enumerate(source.ids(file) or ()):
            if seen.setdefault(name, first + number) != first + number:
                ((other, row, _),) = plan.pieces(seen[name], 1)
                places = f"{other.path}:{row} and {file.path}:{number}"
                raise ValueError(f"id: expected ids that are unique, got {name!r} in {places}")
        first += file.rows


def _remove(folder: Path) -> None:
    """Remove what an earlier run wrote, its manifest last: until then it can be overwritten again."""
    for pattern in ("part-*.parquet", ".part-*.parquet", INDEX):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / ATTEMPTS, ignore_errors=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob("files-*.parquet"):
        path.unlink()


def undone(job: Job, retry_errors: bool = False) -> list[Shard]:
    """Find the shards that are to be explained, and remove what led to the others.

    Parameters
    ----------
    job : Job
    retry_errors : bool
        Those whose parts hold error rows among them.
    """
    known = {name: is_known for name, (_, is_known) in parts_there(job.output, job.digest).items()}
    broken = set(_with_errors(job.output, known)) if retry_errors else set()
    begun = {path.name for path in (job.output / ATTEMPTS).glob("shard-*.jsonl")}
    found: list[Shard] = []
    for shard in job.plan.shards():
        name = part_name(shard.number)
        there = name in known and (known[name] or job.is_done(shard))
        if there and retry_errors and not known[name] and _has_errors(job.output / name):
            broken.add(name)
        if there and name in broken:
            # How often it died since is kept; what led to the part is not.
            journal = Attempts(_journals(job), shard.number)
            if not journal.is_of_retry():
                forget(job.output, shard)
                journal.retry()
            found.append(shard)
        elif not there:
            found.append(shard)
        elif journal_name(shard.number) in begun:
            forget(job.output, shard)  # killed after its part was written
    return found


def _journals(job: Job) -> Path:
    folder = job.output / ATTEMPTS
    folder.mkdir(exist_ok=True)
    return folder


def _with_errors(folder: Path, known: Mapping[str, bool]) -> Iterator[str]:
    """Name the parts that hold error rows, of those that the index knows."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if any(known.values()):
        table = pq.read_table(folder / INDEX, columns=["part", "status"])
        names = table.filter(pc.not_equal(table["status"], "ok"))["part"].unique().to_pylist()
        yield from (name for name in names if known.get(name))


def _has_errors(path: Path) -> bool:
    import pyarrow.parquet as pq

    return "error" in pq.read_table(path, columns=["status"])["status"].to_pylist()
