"""Fixtures of the command's tests."""

from __future__ import annotations

from pathlib import Path

import conftest_models
import pytest
from conftest_cli import FakeExplainer, save_image
from PIL import Image, ImageDraw

from tam_fast.demo import load_demo
from tam_fast.explain import Explainer


@pytest.fixture
def explainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeExplainer:
    monkeypatch.chdir(tmp_path)
    fake = FakeExplainer()
    monkeypatch.setattr("tam_fast.cli.explain.load_explainer", lambda model, device, dtype, debug: fake)
    return fake


@pytest.fixture(scope="session")
def demo_explainer() -> Explainer:
    return Explainer(*load_demo())


@pytest.fixture
def embedded(demo_explainer: Explainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Explainer:
    """The embedded model, which is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tam_fast.cli.explain.load_explainer", lambda model, device, dtype, debug: demo_explainer)
    return demo_explainer


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Six frames of an animated GIF, a quarter of a second each: a red circle moves to the right."""
    frames = []
    for step in range(6):
        frame = Image.new("RGB", (64, 48), "white")
        ImageDraw.Draw(frame).ellipse((4 + 7 * step, 14, 24 + 7 * step, 34), fill="red")
        frames.append(frame)
    path = tmp_path / "film.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save_image(tmp_path / "photo.jpg")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny random models with their processors: qwen and llava."""
    folder = tmp_path_factory.mktemp("models")
    for name, processor, make in (
        ("qwen", conftest_models.qwen_processor(), conftest_models.qwen_model),
        ("llava", conftest_models.llava_processor(), conftest_models.llava_model),
    ):
        make(processor).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder
