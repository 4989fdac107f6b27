"""``tam-fast layout``: cells drawn on an image, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest_cli import assert_fails, run, save_image
from conftest_models import qwen_processor
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration and a processor, and no weights."""
    import transformers

    processor = qwen_processor()
    place = tmp_path_factory.mktemp("model")
    processor.save_pretrained(place)
    ids = {
        f"{kind}_token_id": processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")
    }
    transformers.Qwen2VLConfig(**ids, vision_config={"spatial_merge_size": 2, "patch_size": 14}).save_pretrained(place)
    return place


@pytest.mark.parametrize("named", ["folder", "config"])
def test_cells_of_a_model_without_weights(folder: Path, tmp_path: Path, named: str) -> None:
    picture = save_image(tmp_path / "scene.png", (140, 60))
    model = folder if named == "folder" else folder / "config.json"
    result = run("layout", picture, "--model", model, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    (grid,) = found["grids"]
    assert (grid["height"], grid["width"], grid["kind"], grid["box"]) == (2, 5, "image", [0, 0, 1, 1])
    assert grid["positions"] == list(range(grid["positions"][0], grid["positions"][0] + 10))
    assert found["model_type"] == "qwen2_vl"
    assert found["file"] == str(tmp_path / "out" / "scene-layout.png")
    with Image.open(found["file"]) as drawn:
        assert drawn.width > 5 * 30


def test_the_embedded_model_and_one_file(tmp_path: Path) -> None:
    picture = save_image(tmp_path / "a.png")
    result = run("layout", picture, "-o", tmp_path / "cells.png")
    assert result.exit_code == 0, result.stderr
    assert "image 6 x 8, cells from 0" in result.stdout or "cells from 0" in result.stdout
    before = (tmp_path / "cells.png").read_bytes()
    assert run("layout", picture, "-o", tmp_path / "cells.png").exit_code == 0  # its own file is replaced
    assert (tmp_path / "cells.png").read_bytes() == before


def test_no_input_and_no_file_of_others_is_replaced(folder: Path, tmp_path: Path) -> None:
    picture = save_image(tmp_path / "a.png")
    before = picture.read_bytes()
    assert_fails(run("layout", picture, "-o", picture, "--force"), 3, "would replace an input")
    other = save_image(tmp_path / "other.png")
    assert_fails(run("layout", picture, "-o", other), 3, "other.png")
    assert picture.read_bytes() == before


def test_what_cannot_be_used_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    picture = save_image(tmp_path / "a.png")
    assert_fails(run("layout", tmp_path / "none.png"), 3, "no such file")
    assert_fails(run("layout", picture, "--model", tmp_path / "none"), 4, "does not exist")
    assert_fails(run("layout", picture, "--model", " "), 2, "--model")
    assert_fails(run("layout", picture, "--max-pixels", 0), 2, "--max-pixels")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text('{"model_type": "llama"}')
    assert_fails(run("layout", picture, "--model", tmp_path / "config"), 4, "--model")
    assert run("layout").exit_code == 2
