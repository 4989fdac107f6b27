"""Explanation: words, maps, peaks, saving and loading. Makes explanations for the tests of pictures and command too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tam_fast.explanation import Candidate, Explanation, Peak, Word, load
from tam_fast.layout import Grid, Layout
from tam_fast.pipeline import TokenActivationMaps

TOKENS = ["A", " red", " cir", "cle", ", a", " well-", "made", " circle", " and", " the", " end", ".", ""]


def make_explanation(
    tokens: Sequence[str] = TOKENS,
    shapes: Sequence[tuple[int, int]] = ((4, 6),),
    *,
    sources: Sequence[int] | None = None,
    boxes: Sequence[tuple[float, float, float, float]] | None = None,
    maps: torch.Tensor | None = None,
    images: Sequence[Image.Image] | None = None,
    prompt: int = 3,
    seed: int = 0,
    **fields: Any,
) -> Explanation:
    """An explanation of `tokens` with random maps (or `maps`); its text is the tokens run together."""
    generator = torch.Generator().manual_seed(seed)
    sources = list(sources) if sources is not None else [0] * len(shapes)
    boxes = list(boxes) if boxes is not None else [(0.0, 0.0, 1.0, 1.0)] * len(shapes)
    grids, place = [], 2
    for (height, width), source, box in zip(shapes, sources, boxes, strict=True):
        grids.append(Grid(range(place, place + height * width), height, width, source=source, box=box))
        place += height * width
    layout = Layout(tuple(grids), torch.arange(place, place + prompt), place + prompt + 1)
    t, n, k = len(tokens), layout.offsets[-1], prompt + max(0, len(tokens) - 1)
    text, offsets = "", []
    for token in tokens:
        offsets.append((len(text), len(text) + len(token)))
        text += token
    if images is None:
        noise = np.random.default_rng(seed)
        images = [Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(1 + max(sources))]
    values: dict[str, Any] = {
        "tokens": list(tokens),
        "token_ids": list(range(100, 100 + t)),
        "text": text,
        "offsets": offsets,
        "maps": TokenActivationMaps(
            maps=torch.rand(t, n, generator=generator) if maps is None else maps,
            relevance=torch.rand(t, k, generator=generator),
            scale=torch.rand(t, generator=generator),
            flat=torch.zeros(t, dtype=torch.bool),
            context_ids=torch.arange(k),
            target_ids=torch.arange(100, 100 + t),
            layout=layout,
        ),
        "candidates": [[Candidate(7, token, 0.75), Candidate(8, " other", 0.125)] for token in tokens],
        "images": list(images),
        "prompt": "What is it?",
        "context_tokens": [f"c{i}" for i in range(k)],
        "model": "test",
        "elapsed": {"generate": 0.5},
    }
    return Explanation(**{**values, **fields})


def assert_same(one: Explanation, two: Explanation) -> None:
    for name in (
        "tokens",
        "token_ids",
        "text",
        "offsets",
        "candidates",
        "prompt",
        "context_tokens",
        "model",
        "elapsed",
    ):
        assert getattr(one, name) == getattr(two, name), name
    assert one.layout == two.layout
    for name in ("maps", "relevance", "scale", "flat", "context_ids", "target_ids"):
        first, second = getattr(one.maps, name), getattr(two.maps, name)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), name
        assert first.contiguous().numpy().tobytes() == second.contiguous().numpy().tobytes(), name
    assert [(i.mode, i.size, i.tobytes()) for i in one.images] == [(i.mode, i.size, i.tobytes()) for i in two.images]


# Words --------------------------------------------------------------------------------------------------


def test_words_join_pieces_and_leave_punctuation_out() -> None:
    e = make_explanation()
    assert [word.text for word in e.words] == ["A", "red", "circle", "a", "well-made", "circle", "and", "the", "end"]
    circle = e.words[2]
    assert (circle.start, circle.stop) == (2, 4)
    assert e.text[slice(*circle.characters)] == "circle"
    assert circle.strength == float(e.maps.maps[2:4].max())
    # The comma's token also holds the article: both words of one token have its map.
    assert (e.words[3].start, e.words[3].stop) == (4, 5)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["Don", "'t", " stop"], ["Don't", "stop"]),
        (["3", ".", "14", " or", " 1,000", "."], ["3.14", "or", "1,000"]),
        (["'quoted'", " -", " x"], ["quoted", "x"]),
        (["\u4e00\u53ea", "\u9ed1\u732b", "\u3002", "OK"], ["\u4e00\u53ea", "\u9ed1\u732b", "OK"]),
        (["cafe\u0301", " x"], ["cafe\u0301", "x"]),
        (["\u0939\u093f\u0928\u094d\u0926\u0940"], ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        (["", " ", "\n", "..."], []),
        ([], []),
    ],
)
def test_words_of_other_texts(tokens: list[str], words: list[str]) -> None:
    assert [word.text for word in make_explanation(tokens).words] == words


def test_find_prefers_whole_words() -> None:
    e = make_explanation()
    assert [word.text for word in e.find("CIRCLE")] == ["circle", "circle"]
    assert [(word.start, word.stop) for word in e.find("circle")] == [(2, 4), (7, 8)]
    assert [word.text for word in e.find("a")] == ["A", "a"]
    assert [word.text for word in e.find("circ")] == ["circ", "circ"]
    assert [(word.start, word.stop) for word in e.find("red  circle")] == [(1, 4)]
    assert e.find("dog") == [] == e.find(" ")
    assert "circle" in e
    assert "dog" not in e
    assert 3 not in e


def test_find_composes_accents_and_takes_patterns_literally() -> None:
    assert [word.text for word in make_explanation([" cafe\u0301"]).find("caf\u00e9")] == ["cafe\u0301"]
    assert make_explanation(["a.c", " abc"]).find("a.c")[0].start == 0
    assert make_explanation(["abc"]).find("a.c") == []
    with pytest.raises(TypeError, match=r"word: expected a string, got int"):
        make_explanation().find(3)  # type: ignore[arg-type]


def test_pieces_of_one_character_share_it() -> None:
    e = make_explanation(["a ", "", "\u732b"], offsets=[(0, 2), (2, 3), (2, 3)])
    assert (e.words[1].start, e.words[1].stop) == (1, 3)


@given(st.lists(st.text(max_size=6), max_size=12))
def test_every_word_is_found_again(tokens: list[str]) -> None:
    e = make_explanation(tokens, shapes=((1, 2),), images=[])
    for word in e.words:
        assert e.text[slice(*word.characters)] == word.text
        assert 0 <= word.start < word.stop <= len(e)
        assert any(found.text.casefold() == word.text.casefold() for found in e.find(word.text))
        assert e.vector(word).shape == (2,)


# Maps ---------------------------------------------------------------------------------------------------


def test_word_map_is_the_maximum_of_its_tokens() -> None:
    e = make_explanation()
    expected = torch.maximum(e.maps.grid(2), e.maps.grid(3))
    for got in (e["circle"], e["Circle"], e.span(2, 4), e[2:4], e[(2, 4)], e[e.words[2]], e.grid("circle")):
        assert isinstance(got, torch.Tensor)
        assert got.shape == (4, 6)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
    assert torch.equal(e.vector("circle"), expected.flatten())


def test_token_index_counts_from_both_ends_and_gives_a_copy() -> None:
    e = make_explanation()
    assert torch.equal(e[-1], e.maps.grid(len(e) - 1))  # type: ignore[arg-type]
    before = e.maps.maps.clone()
    e.vector(0).zero_()
    e.grid(0).zero_()
    assert torch.equal(e.maps.maps, before)
    assert len(list(e)) == len(e)  # type: ignore[call-overload]


def test_several_grids_give_a_list() -> None:
    e = make_explanation(shapes=((2, 3), (4, 1)))
    maps = e["red"]
    assert isinstance(maps, list)
    assert [tuple(m.shape) for m in maps] == [(2, 3), (4, 1)]
    for g, raster in enumerate(maps):
        assert torch.equal(raster, e.maps.grid(1, g))
        assert torch.equal(raster, e.grid("red", g))
    with pytest.raises(IndexError, match=r"g: expected a grid from 0 to 1, got 2"):
        e.grid("red", 2)


def test_nan_is_passed_over() -> None:
    maps = torch.tensor([[math.nan, 0.5], [0.25, math.nan], [math.nan, math.nan]])
    e = make_explanation(["a", "b", " c"], ((1, 2),), maps=maps)
    assert torch.equal(e.vector("ab"), torch.tensor([0.25, 0.5]))
    assert bool(e.vector("c").isnan().all())
    assert e.visual_strength.tolist() == [0.5, 0.25, 0.0]
    assert e.peak("c").value == 0.0


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("dog", KeyError, r"'dog' is not in the answer; its words are: A, red, circle, a, well-made, and, the"),
        (13, IndexError, r"key: expected a token from 0 to 12, got 13"),
        (-14, IndexError, r"key: expected a token from 0 to 12, got -14"),
        (slice(3, 3), ValueError, r"key: expected at least one of 13 tokens, got tokens 3 to 3"),
        (slice(0, 4, 2), ValueError, r"key: expected a slice of step 1, got step 2"),
        ((1, 2, 3), ValueError, r"key: expected a span \(start, end\), got \(1, 2, 3\)"),
        (True, TypeError, r"key: expected a token's index.* got bool"),
        (1.0, TypeError, r"key: expected a token's index.* got float"),
        (Word("x", 9, 20, (0, 1), 0.0), ValueError, r"key: expected at least one of 13 tokens, got tokens 9 to 20"),
    ],
)
def test_wrong_keys(key: Any, error: type[Exception], message: str) -> None:
    e = make_explanation()
    for ask in (e.__getitem__, e.vector, e.grid, e.peak, e.overlay):
        with pytest.raises(error, match=message):
            ask(key)


def test_peak_is_placed_on_the_image() -> None:
    maps = torch.zeros(2, 4 + 6)
    maps[0, 4 + 5] = 0.5
    boxes = [(0.0, 0.0, 1.0, 1.0), (0.5, 0.0, 1.0, 0.5)]
    e = make_explanation(["a", " b"], ((2, 2), (2, 3)), boxes=boxes, sources=[0, 0], maps=maps)
    peak = e.peak("a")
    assert (peak.value, peak.grid, peak.row, peak.column, peak.source) == (0.5, 1, 1, 2, 0)
    assert peak.x == pytest.approx(0.5 + 0.5 * 2.5 / 3)
    assert peak.y == pytest.approx(0.375)
    assert e.peak("b") == Peak(0.0, 0, 0, 0, 0, 0.25, 0.25)


def test_strength_is_the_brightest_cell() -> None:
    e = make_explanation()
    assert torch.equal(e.visual_strength, e.maps.maps.amax(1))
    assert e.visual_strength.shape == (len(e),)
    assert torch.equal(e.relevance, e.maps.relevance)


def test_repr_is_short() -> None:
    text = repr(make_explanation(shapes=((4, 6), (2, 2))))
    assert "red circle" in text
    assert "13 tokens" in text
    assert "4x6, 2x2" in text
    assert len(text) < 200


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"token_ids": [1]}, ValueError, r"token_ids: expected one for each of 13 maps, got 1"),
        ({"candidates": []}, ValueError, r"candidates: expected one for each of 13 maps, got 0"),
        ({"context_tokens": ["x"]}, ValueError, r"context_tokens: expected one for each of 15 columns"),
        ({"offsets": [(0, 99)] * 13}, ValueError, r"offsets: .* got \(0, 99\) for token 0"),
        ({"offsets": [(2, 1)] * 13}, ValueError, r"offsets: .* got \(2, 1\) for token 0"),
        ({"images": [Image.new("RGB", (1, 1))] * 2}, ValueError, r"images: expected 1, .* got 2"),
        ({"images": ["photo.jpg"]}, TypeError, r"images: expected PIL images, got str"),
        ({"tokens": ["x"]}, ValueError, r"tokens: expected one for each of 13 maps, got 1"),
    ],
)
def test_fields_must_agree(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dataclasses.replace(make_explanation(), **fields)


def test_maps_must_fit_their_layout() -> None:
    with pytest.raises(ValueError, match=r"maps: expected maps of shape \(tokens, 24\), got \(13, 5\)"):
        make_explanation(maps=torch.zeros(13, 5))


def test_images_become_rgb() -> None:
    e = make_explanation(images=[Image.new("L", (8, 8), 7)])
    assert e.images[0].mode == "RGB"


# Files --------------------------------------------------------------------------------------------------


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
    import io

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
