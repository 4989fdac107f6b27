"""The command line of the training: :func:`main`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch

from tam_fast.demo import ASSETS
from tam_fast.demo.train.checks import score
from tam_fast.demo.train.memory import keep_freed_memory
from tam_fast.demo.train.plan import SMOKE, Plan
from tam_fast.demo.train.trainer import train

__all__ = ["main"]

_SHARES = {"image": 0.5, "pair": 0.2, "film": 0.3}


def _kinds(text: str) -> dict[str, float]:
    names = text.split(",")
    unknown = [name for name in names if name not in _SHARES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(_SHARES)}, got {', '.join(unknown)}")
    total = sum(_SHARES[name] for name in names)
    return {name: _SHARES[name] / total for name in names}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tam_fast.demo.train", description="Train the embedded model.")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, configuration and tokenizer")
    parser.add_argument(
        "--checkpoints", type=Path, help="folder to keep the run in every 100 steps; resumes from there"
    )
    parser.add_argument("--tokenizer", type=Path, default=ASSETS, help="folder of the tokenizer (default: the shipped)")
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[Plan().seed], help="several seeds: the best by validation is kept"
    )
    parser.add_argument(
        "--kinds", type=_kinds, default=dict(Plan().kinds), help="what is learned: image,pair,film (default: image)"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model, to try the program")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()

    def log(line: str) -> None:
        print(line, flush=True)

    plan = SMOKE if options.smoke else Plan(kinds=options.kinds)
    if len(options.seed) == 1:
        train(
            options.output, dataclasses.replace(plan, seed=options.seed[0]), log, options.checkpoints, options.tokenizer
        )
        return
    scores: dict[int, float] = {}
    for seed in options.seed:
        kept = None if options.checkpoints is None else options.checkpoints / f"seed-{seed}"
        folder = options.output / f"seed-{seed}"
        record = train(folder, dataclasses.replace(plan, seed=seed), log, kept, options.tokenizer)
        scores[seed] = score(record["validation"])
        log(f"seed {seed}: validation {scores[seed]:.4f}")
    best = max(scores, key=lambda seed: scores[seed])
    for file in sorted((options.output / f"seed-{best}").iterdir()):
        shutil.copyfile(file, options.output / file.name)
    log(f"seed {best} is the best of {json.dumps(scores)}")
