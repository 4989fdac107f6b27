"""Files: saved and loaded explanations are the same, and what is no such pair of files is refused."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from explanations import assert_same, make_explanation
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tam_fast.explanation import Explanation, load


@given(
    tokens=st.lists(st.text(st.characters(codec=None), max_size=5), max_size=6),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    prompt=st.integers(0, 3),
    edge=st.floats(-2.0, 0.9),
    elapsed=st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    seed=st.integers(0, 9),
    with_images=st.booleans(),
)
def test_save_load_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[str],
    shapes: list[tuple[int, int]],
    prompt: int,
    edge: float,
    elapsed: dict[str, float],
    seed: int,
    with_images: bool,
) -> None:
    maps = torch.rand(len(tokens), sum(h * w for h, w in shapes))
    maps[maps > 0.9] = math.nan
    e = make_explanation(
        tokens,
        shapes,
        boxes=[(edge, 0.0, 1.0, 1.1)] * len(shapes),
        sources=list(range(len(shapes))),
        prompt=prompt,
        maps=maps,
        elapsed=elapsed,
        seed=seed,
        **({} if with_images else {"images": []}),
    )
    path = tmp_path_factory.mktemp("round") / "e"
    e.save(path)
    assert_same(e, load(path))


def test_save_names_two_files_and_leaves_no_others(tmp_path: Path) -> None:
    e = make_explanation()
    expected = (tmp_path / "a.b.safetensors", tmp_path / "a.b.json")
    for name in ("a.b", "a.b.json", "a.b.safetensors"):
        assert e.save(tmp_path / name) == expected
        assert_same(e, Explanation.load(str(tmp_path / name)))
    assert sorted(tmp_path.iterdir()) == sorted(expected)
    assert expected[0].stat().st_mode & 0o777 == expected[1].stat().st_mode & 0o777
    assert expected[1].stat().st_mode & 0o400


def test_saved_text_is_readable(tmp_path: Path) -> None:
    e = make_explanation(["\u732b", " \u00e9"])
    _, path = e.save(tmp_path / "e")
    assert "\u732b \u00e9" in path.read_text(encoding="utf-8")


def test_failed_save_changes_nothing(tmp_path: Path) -> None:
    make_explanation().save(tmp_path / "e")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_explanation(elapsed={"x": math.inf}).save(tmp_path / "e")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(OSError, match="missing"):
        make_explanation().save(tmp_path / "missing" / "e")


def test_load_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: expected the pair e\.safetensors and e\.json"):
        load(tmp_path / "e")
    _, path = make_explanation().save(tmp_path / "e")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"got no .*e\.json"):
        load(tmp_path / "e.safetensors")


def _saved(folder: Path, **arguments: Any) -> tuple[Path, Path]:
    return make_explanation(**arguments).save(folder / "e")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x00\xff\xfe", b"[]", b"3", b'{"format": "other"}', b"[" * 100_000, b'{"format": NaN}'],
)
def test_foreign_json(tmp_path: Path, content: bytes) -> None:
    _, path = _saved(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"e\.json: expected") as caught:
        load(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_arrays(tmp_path: Path, keep: int) -> None:
    path, _ = _saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"e\.safetensors: expected a safetensors file"):
        load(path)


def test_hostile_header_length(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match=r"e\.safetensors: expected a safetensors file"):
        load(path)


def test_arrays_of_another_explanation(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path)
    other, _ = make_explanation(seed=1).save(tmp_path / "other")
    shutil.copy(other, path)
    with pytest.raises(ValueError, match=r"e\.safetensors: expected the file saved with e\.json"):
        load(path)


def test_changed_byte(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="another checksum"):
        load(path)


def test_newer_version(tmp_path: Path) -> None:
    _, path = _saved(tmp_path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": 2}))
    with pytest.raises(ValueError, match=r"e\.json: expected format version 1, got 2"):
        load(path)


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(name)


def _put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({name: value})


def _put_grid(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["grids"][0].update({name: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop("tokens"), "tokens: expected list, got NoneType"),
        (_put("tokens", ["x"]), "expected the array 'maps' to be"),
        (_put("tokens", [1] * 13), "tokens: expected str, got int"),
        (_put("text", None), "text: expected str, got NoneType"),
        (_put("text", "short"), "offsets: expected"),
        (_put("grids", []), "expected the array 'maps' to be"),
        (_put("grids", [3]), "grids: expected dict, got int"),
        (_put_grid("height", 10**30), "expected the array 'maps' to be"),
        (_put_grid("height", -4), "expected the array 'maps' to be"),
        (_put_grid("height", True), "height: expected int, got bool"),
        (_put_grid("box", [0, 0, 1]), "box: expected"),
        (_put_grid("box", [0, 0, 1, math.inf]), "box: expected a finite number"),
        (_put_grid("box", [0, 0, 1, "1"]), "box: expected a finite number"),
        (_put_grid("box", [1, 0, 0, 1]), "box: expected"),
        (_put_grid("kind", 3), "kind: expected str"),
        (_put_grid("source", 10**9), "images: expected"),
        (_put_grid("source", -1), "source: expected at least 0"),
        (_put("answer_start", 3), "expected positions before answer_start"),
        (_put("answer_start", 1.5), "answer_start: expected int, got float"),
        (_put("candidates", [[]]), "candidates: expected one for each of 13 maps, got 1"),
        (_put("candidates", [[[1, "x"]]] * 13), "candidates: expected"),
        (_put("candidates", [[[1, "x", math.nan]]] * 13), "candidates: probability: expected a finite number"),
        (_put("candidates", [[[1, 2, 0.5]]] * 13), "token: expected str"),
        (_put("candidates", [3] * 13), "candidates: expected list, got int"),
        (_put("context_tokens", []), "expected the array"),
        (_put("images", 10**12), "images: expected as many as image arrays"),
        (_put("images", 0), "images: expected as many as image arrays"),
        (_put("elapsed", {"x": 10**400}), "JSON|elapsed|int too large|convert"),
        (_put("elapsed", {"x": "1"}), "elapsed 'x': expected a finite number"),
        (_put("elapsed", []), "elapsed: expected dict, got list"),
        (_drop("arrays_sha256"), "another checksum"),
    ],
)
def test_json_that_does_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    _, path = _saved(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        load(path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"maps": None}, "expected an array 'maps' beside it, got none"),
        ({"maps": torch.zeros(13, 23)}, r"expected the array 'maps' to be torch.float32 of shape \(13, 24\)"),
        ({"maps": torch.zeros(13, 24, dtype=torch.float64)}, "expected the array 'maps' to be torch.float32"),
        ({"offsets": torch.full((13, 2), -1)}, "offsets: expected"),
        ({"visual_positions": torch.zeros(24, dtype=torch.int64)}, "positions: expected distinct positions"),
        ({"prompt_positions": torch.tensor([-3])}, "prompt: expected positions >= 0"),
        ({"prompt_positions": torch.zeros(2, 2, dtype=torch.int64)}, "expected the array 'prompt_positions'"),
        ({"image.0": torch.zeros(9, dtype=torch.uint8)}, "expected the array 'image.0' to be a PNG image"),
        ({"image.0": torch.zeros(9)}, "expected the array 'image.0' to be a vector of bytes"),
        ({"image.x": torch.zeros(9, dtype=torch.uint8)}, "images: expected as many as image arrays, which are 2"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, change: dict[str, torch.Tensor | None], reason: str) -> None:
    arrays_path, json_path = _saved(tmp_path)
    tensors: dict[str, Any] = safetensors.torch.load(arrays_path.read_bytes())
    tensors.update(change)
    _forge(arrays_path, json_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ValueError, match=reason):
        load(arrays_path)


def _forge(arrays_path: Path, json_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write other arrays with a checksum that is right, as somebody hostile would."""
    data = safetensors.torch.save(tensors)
    arrays_path.write_bytes(data)
    document = json.loads(json_path.read_text(encoding="utf-8"))
    document["arrays_sha256"] = hashlib.sha256(data).hexdigest()
    json_path.write_text(json.dumps(document), encoding="utf-8")


def test_hostile_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays_path, _ = _saved(tmp_path)
    # A picture far above the limit, which here is made small: its pixels must not be made.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"image\.0' to be a PNG image, got DecompressionBombError"):
        load(arrays_path)


def test_image_of_another_kind(tmp_path: Path) -> None:
    arrays_path, json_path = _saved(tmp_path)
    tensors = dict(safetensors.torch.load(arrays_path.read_bytes()))
    for image, form, reason in (
        (Image.new("L", (3, 3)), "PNG", "to be an RGB image, got mode L"),
        (Image.new("RGB", (3, 3)), "BMP", "to be a PNG image"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, form)
        tensors["image.0"] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        _forge(arrays_path, json_path, tensors)
        with pytest.raises(ValueError, match=reason):
            load(arrays_path)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_path_without_name(name: str) -> None:
    with pytest.raises(ValueError, match="path: expected a file name"):
        make_explanation().save(name)
