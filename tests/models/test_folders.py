"""Whether a model's folder is whole, by the heads of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tam_fast.models.folders import check_model_files, check_processor_files, read_object

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(0), "c": torch.ones(5)}, tmp_path / "model.safetensors")
    check_model_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"a":', b"\xff", b"3", BOM + b"{}", "{}".encode("utf-16")])
def test_damaged_settings_are_named(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^model: expected a JSON object in {name} of "):
        check_model_files(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b" \n", "is empty"),
        (b"{% for message in messages %}{{ message['ro", "is no template: "),
        (b"{{ 1 + }}", "is no template: "),
        (b"\xff\xfe", "cannot be read as UTF-8 text"),
    ],
)
def test_a_damaged_template_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    for name, text in (("tokenizer_config.json", '{"a": 1}'), ("tokenizer.json", "{}")):
        (tmp_path / name).write_text(text)
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% generation %}{{ messages }}{% endgeneration %}")
    check_processor_files(tmp_path)
    template.write_bytes(data)
    with pytest.raises(ValueError, match=f"^path_or_id: chat_template.jinja of .* {message}"):
        check_processor_files(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 20, -1, None])
def test_weights_that_are_cut_short_or_too_long_are_named(folder: Path, keep: int | None) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" if keep is None else whole[:keep])
    with pytest.raises(ValueError, match=r"model: model.safetensors of .* is damaged: "):
        check_model_files(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\xff" * 100, "100 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "no table of tensors"),
        ((8).to_bytes(8, "little") + b'{"a": 3}', "no table of tensors"),
    ],
)
def test_weights_that_are_none_are_named(folder: Path, data: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        check_model_files(folder)


def test_parts_that_the_index_names_are_there(folder: Path) -> None:
    names = [f"model-0000{index}-of-00003.safetensors" for index in (1, 2, 3)]
    shutil.move(folder / "model.safetensors", folder / names[0])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("abc", names, strict=True))}))
    with pytest.raises(ValueError, match=rf"expected {names[1]}, which .* \(and 1 others\)"):
        check_model_files(folder)
    for name in names[1:]:
        shutil.copy(folder / names[0], folder / name)
    check_model_files(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match=r"weight_map in model.safetensors.index.json"):
        check_model_files(folder)


def test_a_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"here: config.json of .* cannot be read"):
        read_object(tmp_path / "config.json", "here")
