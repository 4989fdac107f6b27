"""Measure ``tam-fast dataset``: ``python -m bench.dataset``.

The processor's time of a whole run beside ``explain()`` one by one and ``explain_batch`` of the same pictures, which
take turns, with results compared first; how long a finished job of 10,000 parts takes to be found finished, and an
index of a million rows to be opened and asked (its rows are error rows: no model is needed to make them); and, with
``--ray``, the rate of two Ray workers beside one's, from the first part on. Keeps ``bench/results/dataset.csv`` and
rewrites the tables in ``docs/datasets.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import RESULTS, ROOT, machine
from bench.measure import Peer, expect_equal, interleave
from bench.pages import factor, number, put
from bench.records import Record, read, record, single, write

IMAGES = 96
BATCH = 8
PARTS, ROWS = 10_000, 100
PROMPT = "Describe this image."
LOOP, BATCHED, RUN = "explain(), one after the other", f"explain_batch(batch_size={BATCH})", "dataset.run"
RESUME, OPEN, FIND = "a finished job is found finished", "the index is opened", "a first row is looked up by its id"
ONE, TWO = "one Ray worker", "two Ray workers"
PAGE = ROOT / "docs" / "datasets.md"


def pictures(folder: Path, count: int) -> Path:
    """Write the shipped scenes again and again, as files of a folder."""
    import tam_fast

    scenes = [path.read_bytes() for path in tam_fast.demo.sample_scenes()]
    folder.mkdir(parents=True)
    for k in range(count):
        (folder / f"{k:06d}.png").write_bytes(scenes[k % len(scenes)])
    return folder


def tokens_of(found: Sequence[Any]) -> list[int]:
    """The tokens of some explanations, one behind the other."""
    return [token_id for e in found for token_id in e.token_ids]


def measure_rows(count: int, effort: dict[str, Any]) -> list[Record]:
    """Time a run, batches and a loop, on one thread; milliseconds of the processor an image."""
    import torch

    import tam_fast
    from tam_fast.dataset import open_dataset, run

    torch.set_num_threads(1)
    explainer = tam_fast.Explainer(*tam_fast.load_demo())
    with tempfile.TemporaryDirectory() as temporary:
        given = pictures(Path(temporary, "in"), count)
        files = sorted(given.iterdir())
        expected = tokens_of([explainer.explain(path, PROMPT, max_new_tokens=128) for path in files[:8]])
        output = Path(temporary, "out")

        def check(found: Any) -> None:
            expect_equal(tokens_of(found[:8]), expected, "tokens")
            expect_equal(len(found), count, "rows")

        def loop() -> list[Any]:
            return [explainer.explain(path.read_bytes(), PROMPT, max_new_tokens=128) for path in files]

        def batched() -> list[Any]:
            asked = [{"images": path.read_bytes(), "prompt": PROMPT, "max_new_tokens": 128} for path in files]
            return list(explainer.explain_batch(asked, BATCH))

        def whole() -> Any:
            # Beginning anew removes a part or two: part of what is timed, and small.
            explain = {"max_new_tokens": 128}
            return run(given, output, model=explainer, batch_size=BATCH, overwrite=True, explain=explain)

        def check_whole(report: Any) -> None:
            expect_equal((report.done, report.errors), (count, 0), "rows")
            check(list(open_dataset(output)))

        peers = [
            Peer(BATCHED, batched, check, count),
            Peer(RUN, whole, check_whole, count),
            Peer(LOOP, loop, check, count),
        ]
        case = f"{count} pictures, the processor's time"
        timings = interleave(case, peers, clock=time.process_time, **effort)
    return [record(case, timing, "ms", 1) for timing in timings]


def measure_size(parts: int, rows: int) -> list[Record]:
    """Time a finished job and its index; seconds, the least of three."""
    import tam_fast
    from tam_fast.dataset import open_dataset, run

    explainer = tam_fast.Explainer(*tam_fast.load_demo())
    case = f"{parts:,} parts of {rows} rows"
    with tempfile.TemporaryDirectory() as temporary:
        given, output = Path(temporary, "rows.jsonl"), Path(temporary, "out")
        with given.open("w") as file:
            # URLs are never fetched: each row is an error.
            file.writelines(json.dumps({"image": f"http://a.b/{k}.png"}) + "\n" for k in range(parts * rows))
        report = run(given, output, model=explainer, shard_rows=rows)
        expect_equal((report.done, report.errors), (parts * rows, parts * rows), "rows")
        times: dict[str, list[float]] = {RESUME: [], OPEN: [], FIND: []}
        for _ in range(3):
            began = time.perf_counter()
            again = run(given, output, model=explainer, shard_rows=rows)
            times[RESUME].append(time.perf_counter() - began)
            expect_equal((again.done, again.explained), (parts * rows, 0), "rows")
            began = time.perf_counter()
            opened = open_dataset(output)
            expect_equal(len(opened), parts * rows, "rows")
            times[OPEN].append(time.perf_counter() - began)
            name = f"rows.jsonl:{parts * rows - 5}"
            began = time.perf_counter()
            expect_equal(opened.record(name)["id"], name, "id")
            times[FIND].append(time.perf_counter() - began)
    return [single(case, name, "s", 1, min(values)) for name, values in times.items()]


def measure_ray(count: int) -> list[Record]:
    """Time one and two Ray workers of one thread each; milliseconds an image between the first part and the last."""
    from tam_fast.dataset import run

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        given = pictures(Path(temporary, "in"), count)
        for workers, name in ((1, ONE), (2, TWO)):
            told: list[tuple[int, float]] = []

            def note(now: Any, told: list[tuple[int, float]] = told) -> None:
                told.append((now.rows, time.perf_counter()))

            output = Path(temporary, name.replace(" ", "-"))
            report = run(given, output, shard_rows=BATCH, engine="ray", workers=workers, progress=note)
            expect_equal((report.done, report.errors), (count, 0), "rows")
            (first, begun), (last, ended) = told[0], told[-1]
            found[name] = (ended - begun) / (last - first)
    case = f"{count} pictures, from the first part on"
    rows = [single(case, name, "ms", 1, 1000 * value) for name, value in found.items()]
    ratio = found[TWO] / found[ONE]
    return [rows[0], Record(case, TWO, "ms", 2, None, 1000 * found[TWO], None, ratio_p50=ratio)]


def table(records: Sequence[Record], measured_on: dict[str, str]) -> str:
    """The tables of the page."""
    by_name = {row.name: row for row in records}
    lines: list[str] = []
    base = by_name.get(LOOP)
    if base is not None:
        lines += [f"{base.case}, 1 thread:", ""]
        lines += ["|  | ms an image | times one by one's rate | times explain_batch's time |", "|---|---:|---:|---:|"]
        for name in (LOOP, BATCHED, RUN):
            row = by_name[name]
            times = factor(row.ratio_p50 or 1.0)
            lines.append(f"| {name} | {number(row.p50)} | {factor(base.p50 / row.p50)} | {times} |")
    if RESUME in by_name:
        lines += ["", f"{by_name[RESUME].case}, least of three:", "", "|  | s |", "|---|---:|"]
        lines += [f"| {name} | {number(by_name[name].p50)} |" for name in (RESUME, OPEN, FIND)]
    if TWO in by_name:
        lines += ["", f"{by_name[TWO].case}:", "", "|  | ms an image | rate, times one worker's |", "|---|---:|---:|"]
        for name in (ONE, TWO):
            lines.append(f"| {name} | {number(by_name[name].p50)} | {factor(by_name[ONE].p50 / by_name[name].p50)} |")
    return "\n".join([*lines, "", f"{machine.line(measured_on)}; `python -m bench.dataset`."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.dataset", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quick look: few rows and samples, nothing is kept")
    parser.add_argument("--ray", action="store_true", help="Ray workers too; else their earlier figures stay")
    parser.add_argument("--pages-only", action="store_true", help="measure nothing; rewrite the page from the CSV")
    given = parser.parse_args(arguments)
    file = RESULTS / "dataset.csv"
    if given.pages_only:
        records, measured_on = read(file)
    else:
        quick: dict[str, Any] = {"budget": 0.1, "min_samples": 1}
        records = measure_rows(8 if given.quick else IMAGES, quick if given.quick else {"budget": 40, "min_samples": 5})
        records += measure_size(*((20, 10) if given.quick else (PARTS, ROWS)))
        if given.ray:
            records += measure_ray(16 if given.quick else 4 * IMAGES)
        elif file.exists() and not given.quick:
            records += [row for row in read(file)[0] if row.name in (ONE, TWO)]
        measured_on = {
            **machine.describe(),
            "cores": str(machine.cores()),
            "commit": machine.commit(),
            "date": machine.today(),
            "pinned": "yes",
        }
        if not given.quick:
            write(file, records, measured_on)
    content = table(records, measured_on)
    print(content)
    if not given.quick:
        put(PAGE, "dataset", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
