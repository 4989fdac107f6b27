"""Draws the shipped sample scenes: ``python -m tam_fast.demo.build_samples DIR``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tam_fast.demo import scenes as sc

__all__ = ["SAMPLE_SEEDS", "SIZE", "build", "main"]

# A stream of their own, apart from training, validation and evaluation; picked among scenes that are captioned right.
SAMPLE_SEEDS: tuple[tuple[int, int], ...] = ((3, 44), (3, 10), (3, 29), (3, 11), (3, 21), (3, 8))
SIZE = 160


def build(output: Path) -> list[Path]:
    """Write every sample as a PNG with a JSON file of its seed, caption and objects; returns the PNG paths."""
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, seed in enumerate(SAMPLE_SEEDS, start=1):
        scene = sc.make_scene(np.random.default_rng(seed))
        path = output / f"scene-{number}.png"
        Image.fromarray(sc.render(scene, SIZE)).save(path, optimize=True)
        masks = sc.masks(scene, SIZE)
        objects = []
        for item, mask in zip(scene.objects, masks, strict=True):
            rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
            box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            objects.append({"colour": item.colour, "shape": item.shape, "box": box, "pixels": int(mask.sum())})
        facts = {"seed": list(seed), "size": SIZE, "caption": sc.caption(scene), "objects": objects}
        path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> None:
    """Command line: draw the samples into a folder."""
    parser = argparse.ArgumentParser(description="Draw the shipped sample scenes.")
    parser.add_argument("output", type=Path, help="folder to write to")
    for path in build(parser.parse_args(arguments).output):
        print(path)


if __name__ == "__main__":
    main()
