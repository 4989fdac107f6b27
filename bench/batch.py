"""Measure ``explain_batch`` beside one ``explain`` after the other, on the embedded model: ``python -m bench.batch``.

The same pictures for every batch size, which take turns; tokens and maps are compared with those of one by one before
anything is timed. Keeps ``bench/results/batch.csv`` and rewrites the table in ``docs/speed.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bench import RESULTS, ROOT, machine
from bench.measure import Peer, expect_close, expect_equal, interleave
from bench.pages import factor, number, put
from bench.records import Record, read, record, write

SIZES = (1, 2, 4, 8)
IMAGES = 16
PROMPTS = ("Describe this image.", "What is on the left?")
ONE_BY_ONE = "explain(), one after the other"
TOLERANCE = 1e-4
PAGE = ROOT / "docs" / "speed.md"


def requests(count: int) -> list[dict[str, Any]]:
    """The shipped scenes, each loaded once, and two prompts in turn."""
    from PIL import Image

    import tam_fast

    scenes = [Image.open(path).convert("RGB") for path in tam_fast.demo.sample_scenes()]
    return [{"images": scenes[k % len(scenes)], "prompt": PROMPTS[k % len(PROMPTS)]} for k in range(count)]


def measure(threads: int, quick: bool = False) -> list[Record]:
    """Time every way; seconds an image, ratios to one by one."""
    import torch

    import tam_fast

    torch.set_num_threads(threads)
    explainer = tam_fast.Explainer(*tam_fast.load_demo())
    asked = requests(4 if quick else IMAGES)
    expected = [explainer.explain(**request) for request in asked]

    def check(found: Any) -> None:
        for e, other in zip(found, expected, strict=True):
            expect_equal(e.token_ids, other.token_ids, "tokens")
            expect_close(e.maps.maps, other.maps.maps, TOLERANCE, "maps")

    peers = [Peer(ONE_BY_ONE, lambda: [explainer.explain(**request) for request in asked], check, len(asked))]
    for size in SIZES:

        def run(size: int = size) -> Any:
            return explainer.explain_batch(asked, size)

        peers.append(Peer(f"explain_batch(batch_size={size})", run, check, len(asked)))
    tokens = sorted({len(e.tokens) for e in expected})
    case = f"{len(asked)} pictures, answers of {tokens[0]} to {tokens[-1]} tokens"
    effort: dict[str, Any] = {"budget": 0.1, "min_samples": 1} if quick else {"budget": 8.0, "min_samples": 7}
    return [record(case, timing, "ms", threads) for timing in interleave(case, peers, **effort)]


def table(records: Sequence[Record], measured_on: dict[str, str]) -> str:
    """The table of the page: images a second, and how many times one by one's."""
    threads = records[0].threads
    lines = [f"{records[0].case}, {threads} thread{'s' if threads > 1 else ''}:", ""]
    lines += ["|  | images a second | times one by one's (p20 to p80) |", "|---|---:|---:|"]
    for row in records:
        ratios = [1 / ratio for ratio in (row.ratio_p50, row.ratio_p80, row.ratio_p20) if ratio]
        spread = f"{factor(ratios[0])} ({factor(ratios[1])} to {factor(ratios[2])})"
        lines.append(f"| {row.name} | {number(1000 / row.p50)} | {spread} |")
    samples = min(row.samples for row in records)
    command = "python -m bench.batch" + (f" --threads {threads}" if str(threads) != measured_on["cores"] else "")
    return "\n".join([*lines, "", f"Medians of {samples} rounds. {machine.line(measured_on)}; `{command}`."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quick look: few pictures and samples, nothing is kept")
    parser.add_argument(
        "--threads", type=int, metavar="N", default=machine.cores(), help="threads (default: all cores)"
    )
    parser.add_argument("--pages-only", action="store_true", help="measure nothing; rewrite the page from the CSV")
    given = parser.parse_args(arguments)
    file = RESULTS / "batch.csv"
    if given.pages_only:
        records, measured_on = read(file)
    else:
        records = measure(given.threads, given.quick)
        measured_on = {
            **machine.describe(),
            "cores": str(machine.cores()),
            "commit": machine.commit(),
            "date": machine.today(),
            "pinned": "yes",  # as far as one-thread tables go: there are none
        }
        if not given.quick:
            write(file, records, measured_on)
    content = table(records, measured_on)
    print(content)
    if not given.quick:
        put(PAGE, "batch", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
