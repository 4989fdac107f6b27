"""One part of a table, measured in a process of its own: what ``python -m bench`` starts."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bench import machine


def main() -> int:
    """Pin, limit the threads, measure, write the records as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table")
    parser.add_argument("part")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    pinned = machine.pin() if given.threads == 1 else None

    import cv2
    import torch

    from bench.measure import WrongResultError

    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    table = importlib.import_module(f"bench.tables.{given.table}")
    try:
        records = table.measure(given.part, given.threads, given.options)
    except WrongResultError as error:
        print(f"bench: wrong result, nothing is reported: {error}", file=sys.stderr)
        return 3
    result = {
        "machine": machine.describe(),
        "pinned": pinned,
        "records": [asdict(row) for row in records],
    }
    given.output.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
