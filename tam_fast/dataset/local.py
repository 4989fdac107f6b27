"""The engine of one process: :func:`explain_here`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tam_fast.dataset.plan import Shard
from tam_fast.dataset.recorded import Recorded
from tam_fast.dataset.worker import Job, Worker
from tam_fast.explain import Explainer

__all__ = ["explain_here"]


def explain_here(
    job: Job,
    explainer: Explainer | Recorded,
    shards: Sequence[Shard],
    finished: Callable[[int, int], None],
    stop: threading.Event,
) -> None:
    """Explain shards one after another in this process.

    Meanwhile the next one's rows are read.

    Parameters
    ----------
    job : Job
    explainer : Explainer or Recorded
    shards : sequence of Shard
    finished : callable
        Told of rows as they are done: their number, and how many are errors. What it raises ends the run.
    stop : threading.Event
        Once it is set, no other shard is begun.
    """
    worker = Worker(job, explainer, finished=finished)
    with ThreadPoolExecutor(1, "tam_fast-read") as reading:
        ahead = reading.submit(worker.read, shards[0])
        for number, shard in enumerate(shards):
            rows = ahead.result()
            if number + 1 < len(shards):
                ahead = reading.submit(worker.read, shards[number + 1])
            # The part is there before the next shard begins: else that one's death would count as this one's, too.
            worker.write(shard, worker.records(shard, rows))
            if stop.is_set():
                break
        ahead.cancel()
