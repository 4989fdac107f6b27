"""Models that the command is given: folders, ids, devices."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest_cli import assert_fails, load_model, run
from PIL import Image

from tam_fast.cli.loading import find_device, load_explainer
from tam_fast.explain import Explainer
from tam_fast.explanation import load


@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_model_folder(models: Path, name: str, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("explain", photo, "--model", models / name, "--max-new-tokens", "5", "--json")
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["results"]
    e = load("tam-fast-out/photo")
    assert entry["answer"] == e.text
    assert 1 <= len(e) <= 5
    with Image.open(photo) as image:
        made = Explainer(*load_model(models / name)).explain(image.convert("RGB"), max_new_tokens=5, do_sample=False)
    assert made.token_ids == e.token_ids
    assert torch.equal(made.maps.maps, e.maps.maps)
    assert made.candidates == e.candidates


def test_unsupported_model(models: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = transformers.Blip2Config(
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        qformer_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "encoder_hidden_size": 8,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": 500,
            "hidden_size": 8,
            "ffn_dim": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "word_embed_proj_dim": 8,
        },
    )
    transformers.Blip2ForConditionalGeneration(config).save_pretrained("blip")
    for file in (models / "qwen").glob("token*"):
        shutil.copy(file, "blip")
    shutil.copy(models / "qwen" / "processor_config.json", "blip")
    assert_fails(run("explain", photo, "--model", "blip"), 4, "--model: cannot use 'blip'")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./missing", "got './missing', which does not exist"),
        ("missing", "got 'missing', which does not exist"),
        ("photo.jpg", "got 'photo.jpg', which is a file"),
        ("/dev/null", "got '/dev/null', which is no folder"),
        ("folder", "got 'folder', which has no config.json"),
        ("broken", "--model: cannot use 'broken'"),
        ("text", "--model: cannot use 'text'"),
        ("owner/none", "--model: cannot use 'owner/none'"),
    ],
)
def test_models_that_cannot_be_loaded(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, config in (("folder", None), ("broken", "{"), ("text", '{"model_type": "gpt2"}')):
        (tmp_path / name).mkdir()
        if config is not None:
            (tmp_path / name / "config.json").write_text(config)
    assert_fails(run("explain", photo, "--model", model), 4, message)


def test_devices(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails(run("explain", photo, "--device", "nosuch"), 2, "--device: expected one that torch can use here")
    assert_fails(run("explain", photo, "--device", "meta"), 2, "got 'meta' (it keeps no values)")
    if not torch.cuda.is_available():
        assert_fails(run("explain", photo, "--device", "cuda"), 2, "--device: expected one that torch can use here")
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_explainer(None, "cpu", "auto", debug=False)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
