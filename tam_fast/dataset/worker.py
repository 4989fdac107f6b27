"""What explains one shard, in whatever process: :class:`Worker`."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tam_fast.dataset.attempts import Attempts, Span
from tam_fast.dataset.parts import done, footer, part_path, piece_path, read_part, write_part
from tam_fast.dataset.plan import Plan, Shard, read_rows
from tam_fast.dataset.recorded import Recorded
from tam_fast.dataset.records import error_record, record_of
from tam_fast.dataset.sources import Row, Source
from tam_fast.explain import Explainer

__all__ = ["ATTEMPTS", "Job", "Receipt", "SpoiltError", "Stopped", "Worker", "forget"]

ATTEMPTS = "attempts"
"""The folder of the journals."""


_NAMED = re.compile(r"requests\[(\d+)\]: ")


class Stopped(Exception):
    """The worker was asked to stop; its shard is begun anew another time."""


class SpoiltError(RuntimeError):
    """The device is of no more use to this process: what follows would fail whatever it is."""


@dataclass(frozen=True)
class Job:
    """What is the same for all shards of a data set.

    Attributes
    ----------
    output : Path
    plan : Plan
    source : Source
    digest : str
        Of the configuration; stands in each part's footer.
    arguments : mapping
        Of ``Explainer.explain``, for each row.
    batch_size : int
    maps, maps_format : str
        See :func:`tam_fast.dataset.records.record_of`.
    """

    output: Path
    plan: Plan
    source: Source
    digest: str
    arguments: Mapping[str, Any]
    batch_size: int = 8
    maps: str = "tokens"
    maps_format: str = "uint8"

    def footer(self, shard: Shard) -> dict[str, str]:
        """What the part of a shard is known by."""
        return footer(shard, self.digest, self.maps, self.maps_format)

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard's part is there."""
        return done(part_path(self.output, shard), self.footer(shard), shard.rows)


@dataclass(frozen=True)
class Receipt:
    """What became of a shard: plain numbers, to be handed between processes.

    Attributes
    ----------
    shard : int
    rows, errors : int
    """

    shard: int
    rows: int
    errors: int


@dataclass
class Worker:
    """Explains shards, one at a time, and writes their parts.

    Parameters
    ----------
    job : Job
    explainer : Explainer or Recorded
    stop : callable
        Asked between batches; true raises :class:`Stopped`.
    finished : callable
        Told of rows as they are done: their number, and how many are errors.
    """

    job: Job
    explainer: Explainer | Recorded
    stop: Callable[[], bool] = lambda: False
    finished: Callable[[int, int], None] = lambda _rows, _errors: None

    def explain(self, shard: Shard) -> Receipt:
        """Explain a shard and write its part.

        Raises
        ------
        Stopped
            If it was asked to stop; the part is not there then.
        """
        return self.write(shard, self.records(shard, self.read(shard)))

    def read(self, shard: Shard) -> list[Row]:
        """Read the rows of a shard."""
        return list(read_rows(self.job.plan, self.job.source, shard.first, shard.rows))

    def records(self, shard: Shard, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Explain the rows of a shard; those that are done already, in pieces or in a part with errors, are kept.

        Raises
        ------
        Stopped
            As :meth:`explain`.
        """
        attempts = self._attempts(shard)
        kept = read_part(part_path(self.job.output, shard)) if self.job.is_done(shard) else []
        spans = attempts.spans(shard.rows)
        made: list[dict[str, Any]] = []
        for span in spans:
            old = kept[span.start : span.stop]
            made += self._span(shard, span, rows[span.start : span.stop], old, attempts, alone=len(spans) == 1)
        return made

    def write(self, shard: Shard, records: Sequence[dict[str, Any]]) -> Receipt:
        """Write the part of a shard; what led to it is removed."""
        try:
            write_part(part_path(self.job.output, shard), records, self.job.footer(shard))
        except BaseException:
            self._attempts(shard).stopped()  # a full disk is no row's fault
            raise
        forget(self.job.output, shard)
        return Receipt(shard.number, len(records), sum(record["status"] != "ok" for record in records))

    def _attempts(self, shard: Shard) -> Attempts:
        folder = self.job.output / ATTEMPTS
        folder.mkdir(exist_ok=True)
        return Attempts(folder, shard.number)

    def _span(
        self,
        shard: Shard,
        span: Span,
        rows: Sequence[Row],
        old: Sequence[dict[str, Any]],
        attempts: Attempts,
        alone: bool,
    ) -> list[dict[str, Any]]:
        """Explain some rows of a shard; those of a shard in pieces are kept, lest a later piece takes them with it."""
        path = piece_path(self.job.output, shard, span.start, span.stop)
        footer = self.job.footer(shard)
        if not alone and done(path, footer, len(rows)):
            return read_part(path)
        if span.given_up:
            records = [error_record(rows[0].id, f"killed its worker {span.deaths} times, by itself")]
        else:
            attempts.begin(span)
            try:
                records = self._rows(rows, old, attempts)
            except SpoiltError:
                raise  # as good as a death
            except BaseException:
                attempts.stopped()  # an error or a stop, no death
                raise
        if not alone:
            write_part(path, records, footer)
        return records

    def _rows(self, rows: Sequence[Row], old: Sequence[dict[str, Any]], attempts: Attempts) -> list[dict[str, Any]]:
        made = {place: record for place, record in enumerate(old) if record["status"] == "ok"}
        broken = {
            place: error_record(row.id, row.error) for place, row in enumerate(rows) if row.error and place not in made
        }
        made.update(broken)
        if broken:
            self.finished(len(broken), len(broken))
        # Of like lengths together: less padding.
        waiting = sorted((place for place in range(len(rows)) if place not in made), key=lambda k: _weight(rows[k]))
        for begin in range(0, len(waiting), self.job.batch_size):
            if self.stop():
                raise Stopped
            places = waiting[begin : begin + self.job.batch_size]
            some = self._batch([rows[place] for place in places])
            made.update(zip(places, some, strict=True))
            attempts.reached(len(made))
            self.finished(len(some), sum(record["status"] != "ok" for record in some))
        return [made[place] for place in range(len(rows))]

    def _batch(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Explain rows together; what fails becomes an error row, and the others are explained all the same."""
        try:
            found = self.explainer.explain_batch([self._request(row) for row in rows], batch_size=len(rows))
        except Exception as error:
            if _is_spoilt(error):
                raise SpoiltError(_message(error)) from error
            found = list(getattr(error, "explanations", []))
            # The frames of the error hold the batch's tensors.
            failed, place = _message(error), _place(error, len(found))
            # Whose fault it is must be known before a row is given up.
            apart = _is_short_of_memory(error) or not _NAMED.match(str(error))
        else:
            failed, place, apart = "", len(found), False
        made = [record_of(row.id, e, self.job.maps, self.job.maps_format) for row, e in zip(rows, found, strict=False)]
        rows = rows[len(made) :]
        place -= len(made)
        del found
        if not failed:
            return made
        if apart and len(rows) > 1:
            _let_go()
            middle = len(rows) // 2
            return [*made, *self._batch(rows[:middle]), *self._batch(rows[middle:])]
        # A request that cannot be prepared fails before those that stand ahead of it were run.
        before = self._batch(rows[:place]) if place else []
        behind = self._batch(rows[place + 1 :]) if rows[place + 1 :] else []
        return [*made, *before, error_record(rows[place].id, failed), *behind]

    def _request(self, row: Row) -> dict[str, Any]:
        request = {**self.job.arguments, "images": list(row.images)}
        if row.prompt is not None:
            request["prompt"] = row.prompt
        if row.answer is not None:
            request["answer"] = row.answer
        if isinstance(self.explainer, Recorded):
            request["id"] = row.id
        return request


def forget(output: Path, shard: Shard) -> None:
    """Remove what led to a part that is there: its pieces, and then its journal, which tells of them."""
    journal = Attempts(output / ATTEMPTS, shard.number)
    if len(journal.spans(shard.rows)) > 1:
        for path in output.glob(f".part-{shard.number:05d}.*.parquet"):
            path.unlink()
    journal.forget()


def _weight(row: Row) -> tuple[int, int]:
    """About how long a row is: bytes of its images say little, but like ones are mostly of one size."""
    size = sum(len(image) if isinstance(image, bytes) else image.width * image.height for image in row.images)
    return len(row.prompt or "") + 4 * len(row.answer or ""), size


def _is_short_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)


def _is_spoilt(error: BaseException) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _let_go() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def _place(error: BaseException, done: int) -> int:
    """Find which request failed; the first that is not done if the error does not say."""
    found = _NAMED.match(str(error))
    return max(done, int(found[1])) if found else done


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {_NAMED.sub('', str(error))}"[:2000]
