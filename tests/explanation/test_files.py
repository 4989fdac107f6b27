"""Files: saved and loaded explanations are the same, and what is no such pair of files is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest_models
import numpy as np
import pytest
import safetensors.torch
import torch
from explanations import assert_same, make_explanation
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tam_fast.explanation import Candidate, Explanation, Frames, load
from tam_fast.explanation.checks import check_values
from tam_fast.maps.answer import activation_maps
from tam_fast.maps.tokens import Compat
from tam_fast.models.text import TextDecoder


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
        (_put("candidates", [[[1, "x", 1.5]]] * 13), "candidates: probability: expected 0 to 1, got 1.5 for token 0"),
        (_put("candidates", [[[1, "x", -0.5]]] * 13), "candidates: probability: expected 0 to 1, got -0.5"),
        (_put("candidates", [[[-1, "x", 0.5]]] * 13), "candidates: token_id: expected at least 0, got -1"),
        (_put("candidates", [[[10**30, "x", 0.5]]] * 13), "candidates: token_id: expected at most .*, got 10{30} "),
        (_put("answer_start", 10**30), "answer_start: expected a position, got 10{30}"),
        (_put("candidates", [[[1, 2, 0.5]]] * 13), "token: expected str"),
        (_put("nan_cells", 1), r"maps: expected NaN in 1 cells \(nan_cells\), got it in 0"),
        (_put("nan_cells", "0"), "nan_cells: expected int, got str"),
        (_put("source", 3), "source: expected str, got int"),
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
        ({"offsets": torch.arange(26).reshape(13, 2).flip(0)}, "offsets: expected them in the order of the text"),
        ({"offsets": torch.tensor([[0, 1], [2, 4], [1, 2]] + [[5, 6]] * 10)}, r"got \(1, 2\) after \(2, 4\)"),
        ({"maps": torch.full((13, 24), 1e30)}, r"maps: expected values in \[0, 1\], got 1e\+30 at \[0, 0\]"),
        ({"maps": torch.full((13, 24), -0.01)}, r"maps: expected values in \[0, 1\], got -0.01"),
        ({"maps": torch.full((13, 24), 1.01)}, r"maps: expected values in \[0, 1\], got 1.01"),
        ({"maps": torch.full((13, 24), math.inf)}, r"maps: expected values in \[0, 1\], got inf"),
        ({"maps": torch.full((13, 24), math.nan)}, r"maps: expected NaN in 0 cells \(nan_cells\), got it in 312"),
        ({"maps": torch.tensor([[math.nan] + [0.5] * 23] * 13)}, "maps: expected NaN in 0 cells"),
        ({"relevance": torch.full((13, 15), math.nan)}, "relevance: expected finite values >= 0, got nan"),
        ({"relevance": torch.full((13, 15), math.inf)}, "relevance: expected finite values >= 0, got inf"),
        ({"relevance": torch.full((13, 15), -1.0)}, "relevance: expected finite values >= 0, got -1"),
        ({"scale": torch.full((13,), math.nan)}, "scale: expected finite values, got nan"),
        ({"scale": torch.full((13,), -math.inf)}, "scale: expected finite values, got -inf"),
        ({"flat": torch.ones(13, dtype=torch.bool)}, "flat: expected maps of zeros where it is true"),
        ({"token_ids": torch.arange(107, 120)}, "token_ids: expected the target_ids of the maps, got 107 where"),
        ({"target_ids": torch.arange(13)}, "token_ids: expected the target_ids of the maps, got 100 where they have 0"),
        ({"target_ids": torch.full((13,), -1)}, "target_ids: expected ids >= 0, got -1"),
        ({"context_ids": torch.full((15,), -1)}, "context_ids: expected ids >= 0, got -1"),
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


def test_files_of_earlier_versions_load(tmp_path: Path) -> None:
    """Which say neither how many cells are NaN nor where the states come from."""
    for share, loads in ((0.0, True), (0.3, True), (1.0, False)):
        maps = torch.linspace(0, 1, 13 * 24).reshape(13, 24)
        maps[maps < share] = math.nan
        maps[maps == share] = math.nan if share else 0.0
        e = make_explanation(maps=maps)
        e.save(tmp_path / "e")
        assert_same(load(tmp_path / "e"), e)
        document = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
        del document["nan_cells"], document["source"]
        (tmp_path / "e.json").write_text(json.dumps(document), encoding="utf-8")
        if loads:
            assert_same(load(tmp_path / "e"), e)
        else:
            with pytest.raises(ValueError, match="maps: expected numbers, got NaN in all of 312 cells"):
                load(tmp_path / "e")


@pytest.mark.parametrize("make", [conftest_models.qwen_processor, conftest_models.llava_processor])
def test_offsets_of_any_tokens_are_in_order(make: Callable[[], Any]) -> None:
    """Stray bytes and special tokens among them: what a decoder makes can be saved."""
    tokenizer = make().tokenizer
    random = np.random.default_rng(0)
    bytes_alone = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) == "\ufffd"] + tokenizer.all_special_ids
    for pool in (bytes_alone, range(len(tokenizer))):
        for _ in range(200):
            decoder = TextDecoder(tokenizer)
            ids = random.choice(pool, random.integers(1, 25)).tolist()
            for token_id in ids:
                decoder.append(token_id)
            e = make_explanation(decoder.pieces)
            e.maps.target_ids[:] = torch.tensor(ids)
            e.token_ids, e.text, e.offsets = ids, decoder.text, decoder.offsets
            check_values(e)


def test_the_source_of_the_states_is_kept(tmp_path: Path) -> None:
    make_explanation(source="teacher_forced").save(tmp_path / "e")
    assert load(tmp_path / "e").source == "teacher_forced"


def test_what_would_not_load_is_not_saved(tmp_path: Path) -> None:
    for fields, reason in (
        ({"maps": torch.full((13, 24), 2.0)}, "maps: expected values"),
        ({"token_ids": list(range(13))}, "token_ids: expected"),
        ({"offsets": [(2, 3), (0, 1)] + [(3, 3)] * 11}, "offsets: expected them in the order of the text"),
        ({"candidates": [[Candidate(1, "x", math.nan)]] * 13}, "candidates: probability: expected 0 to 1, got nan"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_explanation(**fields).save(tmp_path / "e")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compat", [None, "official", "paper"])
@pytest.mark.parametrize("constant", [False, True])
def test_maps_of_every_kind_are_within_the_ranges(tmp_path: Path, compat: Compat, constant: bool) -> None:
    """NaN and flat maps included, so that what was made can be saved and loaded."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        e = make_explanation(["a", " b", " c"], [(int(random.integers(1, 5)), int(random.integers(1, 5)))])
        hidden = random.standard_normal((e.layout.answer_start + 2, 3)).astype(np.float32)
        if constant:
            hidden[:] = hidden[0]
        ids = random.integers(0, 9, len(hidden) + 1)
        classifier = random.standard_normal((9, 3)).astype(np.float32)
        e.maps = activation_maps(hidden, classifier, ids, e.layout, compat=compat)
        e.token_ids = e.maps.target_ids.tolist()
        e.save(tmp_path / "e")
        assert_same(load(tmp_path / "e"), e)


def test_what_was_asked_is_kept(film: Explanation, tmp_path: Path) -> None:
    for changes in (
        {},
        {"videos": [Frames(film.videos[0].frames)], "thinking": "", "messages": []},
        {"contrast": None},
    ):
        e = dataclasses.replace(film, **changes)  # type: ignore[arg-type]
        e.save(tmp_path / "e")
        again = load(tmp_path / "e")
        assert_same(again, e)
        for name in ("steps", "thinking", "messages"):
            assert getattr(again, name) == getattr(e, name)
        for one, two in zip(again.videos, e.videos, strict=True):
            assert one.times == two.times
            assert [f.tobytes() for f in one.frames] == [f.tobytes() for f in two.frames]
        assert (again.contrast is None) == (e.contrast is None)
        if again.contrast is not None and e.contrast is not None:
            assert torch.equal(again.contrast.with_images, e.contrast.with_images)
            assert torch.equal(again.contrast.without_images, e.contrast.without_images)


def test_a_text_without_images_is_kept(text_only: Explanation, tmp_path: Path) -> None:
    text_only.save(tmp_path / "e")
    assert_same(load(tmp_path / "e"), text_only)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_put("steps", [3, 4, 6, 7, 8]), "steps: expected one for each of 6 maps, got 5"),
        (_put("steps", [3, 4, 6, 7, 8, 8]), "steps: expected ascending places"),
        (_put("steps", [3, 4, 6, 7, 8, 10**30]), "context_tokens: expected 2 of the prompt"),
        (_put("steps", [3, 4, 6, 7, 8, True]), "steps: expected int, got bool"),
        (_put("steps", {}), "steps: expected list, got dict"),
        (_drop("steps"), "context_tokens: expected 2 of the prompt and 5 of"),
        (_put("thinking", ["x"]), "thinking: expected a text, got list"),
        (_put("messages", "x"), "messages: expected a list of them, got str"),
        (_put("messages", [{"role": 3}]), "messages: expected objects with a role"),
        (_put("videos", [{"frames": 4}]), "videos: expected as many frames as video arrays, which are 5"),
        (_put("videos", [{"frames": 10**30}]), "videos: expected as many frames as video arrays"),
        (_put("videos", [{"frames": -1}, {"frames": 6}]), "videos: expected as many frames as video arrays"),
        (_put("videos", [{"frames": 2}, {"frames": 3}]), "expected the array 'video.0.2|video.1.0'"),
        (_put("videos", [{"frames": "5"}]), "frames: expected int, got str"),
        (_put("videos", [{"frames": 5, "times": [0.0]}]), "videos: times: expected one for each of 5 frames, got 1"),
        (_put("videos", [{"frames": 5, "times": [0, 1, 2, 3, "4"]}]), "videos: times: expected a finite number"),
        (_put("videos", [{"frames": 5, "times": [4, 3, 2, 1, 0]}]), "videos: times: expected finite seconds in asc"),
        (_put("videos", 5), "videos: expected list, got int"),
        (_drop("videos"), "videos: expected as many frames as video arrays, which are 5"),
    ],
)
def test_what_was_asked_that_does_not_fit(
    film: Explanation, tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    _, path = film.save(tmp_path / "e")
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        load(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"contrast.with_images": None}, "contrast: expected both its arrays, got without_images alone"),
        ({"contrast.with_images": torch.zeros(5)}, "contrast: without_images: expected 5"),
        ({"contrast.with_images": torch.ones(6)}, "contrast: with_images: expected finite logarithms"),
        ({"contrast.with_images": torch.zeros(6, dtype=torch.int64)}, "contrast: with_images: expected"),
        ({"video.0.1": torch.zeros(9)}, "expected the array 'video.0.1' to be a vector of bytes"),
        ({"video.0.1": torch.zeros(9, dtype=torch.uint8)}, "expected the array 'video.0.1' to be a PNG image"),
        (
            {"video.0.9": torch.zeros(9, dtype=torch.uint8)},
            "videos: expected as many frames as video arrays, which are 6",
        ),
    ],
)
def test_arrays_of_what_was_asked_that_do_not_fit(
    film: Explanation, tmp_path: Path, change: dict[str, torch.Tensor | None], reason: str
) -> None:
    arrays_path, json_path = film.save(tmp_path / "e")
    tensors: dict[str, Any] = safetensors.torch.load(arrays_path.read_bytes())
    tensors.update(change)
    _forge(arrays_path, json_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(ValueError, match=reason):
        load(arrays_path)


def test_messages_that_json_would_change_are_not_saved(film: Explanation, tmp_path: Path) -> None:
    for content in (Image.new("RGB", (1, 1)), ("a",), {1: 2}, math.nan):
        e = dataclasses.replace(film, messages=[{"role": "user", "content": content}])
        with pytest.raises(ValueError, match=r"^messages: expected what JSON can hold"):
            e.save(tmp_path / "e")


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


@pytest.mark.parametrize("name", ["", ".", "/", "..", "a/..", "a\0b", "\ud800"])
def test_path_without_name(name: str) -> None:
    with pytest.raises(ValueError, match="path: expected a file name"):
        make_explanation().save(name)
    with pytest.raises(ValueError, match="path: expected a file name"):
        load(name)


def test_paths_of_any_type(tmp_path: Path) -> None:
    explanation = make_explanation()
    for name in (os.fsencode(tmp_path / "bytes"), tmp_path / "path", str(tmp_path / "text")):
        explanation.save(name)
        assert_same(load(name), explanation)
    for name in (3, None, ["x"]):
        with pytest.raises(TypeError, match="path: expected a path, got "):
            explanation.save(name)
