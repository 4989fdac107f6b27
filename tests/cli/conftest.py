"""Fixtures of the command's tests."""

from __future__ import annotations

from pathlib import Path

import conftest_models
import pytest
from conftest_cli import FakeExplainer, save_image


@pytest.fixture
def explainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeExplainer:
    monkeypatch.chdir(tmp_path)
    fake = FakeExplainer()
    monkeypatch.setattr("tam_fast.cli.explain.load_explainer", lambda model, device, dtype, debug: fake)
    return fake


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
