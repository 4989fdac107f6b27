"""Explain a data set: :func:`run`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tam_fast.dataset.begin import PROMPT, columns_and_prompt, make_folder, plan_or_go_on, undone
from tam_fast.dataset.durable import locked
from tam_fast.dataset.index import counted_parts, make_index
from tam_fast.dataset.local import explain_here
from tam_fast.dataset.models import described, spec_of
from tam_fast.dataset.needed import need
from tam_fast.dataset.parts import clean
from tam_fast.dataset.records import check_kept
from tam_fast.dataset.sources import Columns
from tam_fast.dataset.worker import ATTEMPTS, Job

__all__ = ["PROMPT", "Progress", "Report", "TooManyErrors", "run"]


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
    states: str | os.PathLike[str] | None = None,
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
        This process, or workers on a Ray cluster (extra ``ray``).
    states : path, optional
        Folder of hidden states that vLLM wrote, ``ID.safetensors`` for each row: the answers of `answer` are attributed
        with the model's lm_head and final norm alone. `model` is a folder then.
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
    ModuleNotFoundError
        If pyarrow is missing (extra ``dataset``), or Ray (extra ``ray``).
    """
    need("pyarrow", "dataset")
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
    spec = spec_of(model, device, dtype, states)
    if engine == "ray":
        from tam_fast.dataset.ray_engine import check_options, explain_on_ray

        check_options(**engine_options)
        if spec.explainer is not None:
            raise TypeError("model: expected an id or a folder with engine='ray': other processes load it")
        if not isinstance(source, (str, os.PathLike)):
            raise TypeError("input: expected a path with engine='ray': other processes read it")
    columns = Columns(id, image, None, answer)
    rows, columns, prompt = columns_and_prompt(source, prompt, columns, allow_outside)
    if states is not None:
        if columns.answer is None:
            raise ValueError("answer: expected the column of the recorded answers, with states; got none")
        if set(explain or ()) - {"kernel_size", "compat"}:
            other = min(set(explain or ()) - {"kernel_size", "compat"})
            raise ValueError(f"explain: expected kernel_size and compat alone with states, got {other}")
    folder = Path(os.fsdecode(output))
    make_folder(folder, source)
    # To know which model it is takes no GPU.
    explainer = replace(spec, device=None).load() if engine == "ray" else spec.load()
    arguments = {"prompt": prompt, **(explain or {})}
    config = {
        "model": dict(described(explainer)),
        "explain": {name: _plain(value) for name, value in arguments.items()},
        "columns": columns.given(),
        "maps": maps,
        "maps_format": maps_format,
        "schema": 1,
        **({} if states is None else {"states": "vllm"}),
    }
    with locked(folder):
        began = time.perf_counter()
        manifest = plan_or_go_on(folder, rows, source, config, shard_rows, overwrite)
        clean(folder, folder / ATTEMPTS)
        job = Job(folder, manifest.plan, rows, manifest.digest, arguments, batch_size, maps, maps_format)
        waiting = undone(job, retry_errors)
        counter = _Counter(manifest.plan.rows, sum(shard.rows for shard in waiting), progress, max_errors)
        stop = stop or threading.Event()

        def index(columns: list[str]) -> Any:
            parts = counted_parts(folder, manifest.plan.shards(), manifest.digest, job.is_done)
            return make_index(folder, parts, manifest.digest, columns=columns)

        try:
            if waiting and engine == "ray":
                del explainer  # the driver only needed to know which it is
                given = (os.path.realpath(os.fsdecode(source)), columns, allow_outside)
                explain_on_ray(job, spec, waiting, counter.add, stop, given, config, **engine_options)
            elif waiting:
                explain_here(job, explainer, waiting, counter.add, stop)
        except BaseException:
            # Made again at any time; what went wrong is what is told.
            with contextlib.suppress(OSError):
                index(["status"])
            raise
        found = index(["status"])
        errors = sum(status != "ok" for status in found["status"].to_pylist())
        seconds = time.perf_counter() - began
        return Report(folder, manifest.plan.rows, found.num_rows, errors, counter.explained, seconds)


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
