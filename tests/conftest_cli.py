"""Running the command: in this process with a model that is none, or in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from explanations import make_explanation
from PIL import Image
from typer.testing import CliRunner, Result

import tam_fast
from tam_fast.cli.app import app
from tam_fast.explanation import Explanation

REPOSITORY = Path(tam_fast.__file__).parents[1]


class FakeExplainer:
    """Stands for a loaded model: answers at once, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.tokens = ["A", " red", " cir", "cle", "."]

    def explain(self, images: Any, **options: Any) -> Explanation:
        if self.error is not None:
            raise self.error
        images = images if isinstance(images, list) else [] if images is None else [images]
        self.calls.append({"images": images, **options})
        count = len(images)
        return make_explanation(self.tokens, ((3, 4),) * count, sources=range(count), images=images)


def run(*arguments: object, **options: Any) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="tam-fast", **options)


def python(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, which has imported nothing yet."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )


def assert_fails(result: Result, code: int, message: str) -> None:
    """One line on stderr that says `message`, nothing on stdout, no traceback."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("tam-fast:  ")]
    assert result.exit_code == code, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("tam-fast: error: ")
    assert message in lines[0]
    assert result.stdout == ""


def save_image(path: Path, size: tuple[int, int] = (48, 32), mode: str = "RGB", **options: Any) -> Path:
    """Write an image of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def load_model(folder: Path) -> tuple[Any, Any]:
    """The model and the processor of a folder, as the command is to load them."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, tam_fast.load_processor(folder)
