"""A run on a Ray cluster whose workers need no model: ``python ray_rows.py ADDRESS INPUT OUTPUT PIDS``.

Each worker leaves its process number in PIDS; the row that asks "What is 13?" kills the process that explains it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from data_sets import Canned

from tam_fast.dataset.models import ModelSpec

OPTIONS = {"id": "name", "image": "picture", "prompt": "question", "shard_rows": 2}
DEADLY = "What is 13?"


class Model(torch.nn.Linear):
    """What a fingerprint is made of."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        torch.nn.init.ones_(self.weight)
        torch.nn.init.ones_(self.bias)
        self.config, self.dtype, self.name_or_path = SimpleNamespace(to_dict=lambda: {}), torch.float32, "rows"


class Rows(Canned):
    """Slow enough to be killed meanwhile; without `pids` neither slow nor deadly."""

    def __init__(self, pids: str = "") -> None:
        super().__init__()
        self.model, self.processor = Model(), None
        self.pids = pids

    def explain_batch(self, requests: Sequence[dict[str, Any]], batch_size: int = 8) -> list[Any]:
        if self.pids:
            Path(self.pids, str(os.getpid())).touch()
            time.sleep(0.3)
            if any(request["prompt"] == DEADLY for request in requests):
                os._exit(9)
        return super().explain_batch(requests, batch_size)


@dataclass(frozen=True)
class Spec(ModelSpec):
    """Is loaded in each worker."""

    pids: str = ""

    def load(self) -> Any:
        return Rows(self.pids)


def main(address: str, given: str, output: str, pids: str) -> None:
    from tam_fast.dataset import run, runs

    runs.spec_of = lambda *_: Spec(pids=pids)  # type: ignore[assignment]
    print(run(given, output, engine="ray", workers=2, address=address, **OPTIONS), flush=True)


if __name__ == "__main__":
    # Workers find these classes in a module, not in this script.
    import ray_rows

    ray_rows.main(*sys.argv[1:])
