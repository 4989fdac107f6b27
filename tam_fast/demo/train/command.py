"""The command line of the training: :func:`main`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tam_fast.demo.train.plan import SMOKE, Plan
from tam_fast.demo.train.trainer import train

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tam_fast.demo.train", description="Train the embedded model.")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, configuration and tokenizer")
    parser.add_argument("--checkpoints", type=Path, help="folder of a checkpoint for every stage; resumes from there")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model, to try the program")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    def log(line: str) -> None:
        print(line, flush=True)

    train(options.output, SMOKE if options.smoke else Plan(), log, options.checkpoints)
