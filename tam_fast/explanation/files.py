"""An explanation as two files: arrays and images as safetensors, the rest as JSON; all that is read is checked."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from PIL import Image

from tam_fast.explanation.checks import check_nan, check_values, count_nan
from tam_fast.explanation.kept import KeptStates, Rows
from tam_fast.explanation.replacing import FORMAT, check_replaceable, fitting_stem, replace_files
from tam_fast.explanation.words import Candidate
from tam_fast.maps.answer import TokenActivationMaps, check_options
from tam_fast.maps.layout import Grid, Layout

__all__ = ["FORMAT", "FORMAT_VERSION", "encode", "read", "write"]

FORMAT_VERSION = 1

_T = TypeVar("_T")
_Made = TypeVar("_Made", bound="Fields")

# Tensors of TokenActivationMaps that are saved under their own names: dtype and shape, with T tokens, N cells and K
# context tokens.
_MAP_TENSORS: Mapping[str, tuple[torch.dtype, str]] = {
    "maps": (torch.float32, "TN"),
    "relevance": (torch.float32, "TK"),
    "scale": (torch.float32, "T"),
    "flat": (torch.bool, "T"),
    "context_ids": (torch.int64, "K"),
    "target_ids": (torch.int64, "T"),
}
_OTHER_TENSORS: Mapping[str, tuple[torch.dtype, str]] = {
    "token_ids": (torch.int64, "T"),
    "offsets": (torch.int64, "T2"),
    "visual_positions": (torch.int64, "N"),
    "prompt_positions": (torch.int64, "P"),
}


class Fields(Protocol):
    """What is kept of an explanation."""

    tokens: list[str]
    token_ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    maps: TokenActivationMaps
    candidates: list[list[Candidate]]
    images: list[Image.Image]
    prompt: str
    context_tokens: list[str]
    model: str
    elapsed: dict[str, float]
    source: str
    states: KeptStates | None


def write(path: str | os.PathLike[str], explanation: Fields, force: bool = False) -> tuple[Path, Path]:
    """Write an explanation to its two files, which are returned. See :meth:`Explanation.save`."""
    paths = _pair(path)
    try:
        check_replaceable(paths, force)
    except FileExistsError as error:
        advice = "" if force else ", or force=True"
        raise FileExistsError(
            f"path: expected one that is free or an earlier save's, got one where {error}; give another{advice}"
        ) from error
    replace_files(dict(zip(paths, encode(explanation), strict=True)))
    return paths


def encode(explanation: Fields) -> tuple[bytes, bytes]:
    """Make the contents of an explanation's two files: safetensors and JSON.

    Raises
    ------
    ValueError
        If it holds what :func:`read` would refuse: numbers outside their ranges, ids and offsets that do not agree.
    """
    import safetensors.torch

    check_values(explanation)
    maps, layout = explanation.maps, explanation.maps.layout
    tensors = {name: getattr(maps, name).contiguous() for name in _MAP_TENSORS}
    tensors["token_ids"] = torch.tensor(explanation.token_ids, dtype=torch.int64)
    tensors["offsets"] = torch.tensor(explanation.offsets, dtype=torch.int64).reshape(-1, 2)
    tensors["visual_positions"] = layout.visual_positions
    tensors["prompt_positions"] = layout.prompt
    for index, image in enumerate(explanation.images):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=3)
        tensors[f"image.{index}"] = torch.from_numpy(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())
    if explanation.states is not None:
        tensors |= _kept_tensors(explanation)
    # clone(): safetensors refuses tensors that share memory, which a layout's positions may.
    arrays = safetensors.torch.save({name: tensor.clone() for name, tensor in tensors.items()})
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
        "model": explanation.model,
        "prompt": explanation.prompt,
        "text": explanation.text,
        "tokens": explanation.tokens,
        "context_tokens": explanation.context_tokens,
        "candidates": [[[c.token_id, c.token, c.probability] for c in step] for step in explanation.candidates],
        "grids": [
            {
                "height": grid.height,
                "width": grid.width,
                "kind": grid.kind,
                "source": grid.source,
                "frame": grid.frame,
                "box": list(grid.box),
            }
            for grid in layout.grids
        ],
        "answer_start": layout.answer_start,
        "images": len(explanation.images),
        "elapsed": explanation.elapsed,
        "source": explanation.source,
        "nan_cells": count_nan(maps.maps),
        **({} if explanation.states is None else {"kernel_size": explanation.states.kernel_size}),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    # A lone surrogate may stand in a decoded piece: surrogatepass keeps it.
    return arrays, text.encode("utf-8", "surrogatepass")


def read(path: str | os.PathLike[str], make: Callable[..., _Made]) -> _Made:
    """Read the two files of an explanation, check them, and make it of its fields. See :func:`tam_fast.load`."""
    arrays_path, json_path = _pair(path)
    for name in (arrays_path, json_path):
        if not name.is_file():
            raise FileNotFoundError(f"path: expected the pair {arrays_path.name} and {json_path.name}, got no {name}")
    document = _read_document(json_path)
    arrays = arrays_path.read_bytes()
    tensors = _read_tensors(arrays_path, arrays)
    if hashlib.sha256(arrays).hexdigest() != document.get("arrays_sha256"):
        raise ValueError(f"{arrays_path}: expected the file saved with {json_path.name}, got one with another checksum")
    try:
        made = make(**_fields(document, tensors))
        check_values(made)
        check_nan(made.maps.maps, document.get("nan_cells"))
        return made
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{json_path}: {error}") from error


def _pair(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    try:
        path = Path(os.fsdecode(path))
        os.fsencode(path)
    except TypeError as error:
        raise TypeError(f"path: expected a path, got {type(path).__name__}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"path: expected a file name that the system can write, got {str(path)!r}") from error
    if path.suffix in (".safetensors", ".json"):
        path = path.with_suffix("")
    if path.name in ("", "..") or "\0" in str(path):
        raise ValueError(f"path: expected a file name, got {str(path)!r}")
    path = path.with_name(fitting_stem(path.parent, path.name))
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {type(error).__name__}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'{path}: expected an object with "format": "{FORMAT}", got something else')
    if document.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path}: expected format version {FORMAT_VERSION}, got {document.get('version')!r}")
    return document


def _read_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: expected a safetensors file, got {type(error).__name__}: {error}") from error


def _fields(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Check both files' contents against each other and return the fields of the explanation."""
    tokens = _list(document, "tokens", str)
    context_tokens = _list(document, "context_tokens", str)
    boxes = _list(document, "grids", dict)
    shapes = [(_get(grid, "height", int), _get(grid, "width", int)) for grid in boxes]
    sizes = {"T": len(tokens), "K": len(context_tokens), "N": sum(height * width for height, width in shapes), "2": 2}
    for name, (dtype, dimensions) in {**_MAP_TENSORS, **_OTHER_TENSORS}.items():
        if name not in tensors:
            raise ValueError(f"expected an array {name!r} beside it, got none")
        got = tensors[name]
        # The number of prompt positions is said nowhere else; Layout checks the positions.
        shape = tuple(sizes.get(dimension, got.numel()) for dimension in dimensions)
        if got.dtype != dtype or tuple(got.shape) != shape:
            raise ValueError(
                f"expected the array {name!r} to be {dtype} of shape {shape}, "
                f"got {got.dtype} of shape {tuple(got.shape)}"
            )
    grids = []
    start = 0
    for entry, (height, width) in zip(boxes, shapes, strict=True):
        positions = tensors["visual_positions"][start : start + height * width]
        box = tuple(_number(edge, "box") for edge in _get(entry, "box", list))
        kind, source, frame = _get(entry, "kind", str), _get(entry, "source", int), _get(entry, "frame", int)
        grids.append(Grid(positions, height, width, kind, source, frame, cast(tuple[float, float, float, float], box)))
        start += height * width
    layout = Layout(tuple(grids), tensors["prompt_positions"], _get(document, "answer_start", int))
    elapsed = _get(document, "elapsed", dict)
    return {
        "tokens": tokens,
        "token_ids": tensors["token_ids"].tolist(),
        "text": _get(document, "text", str),
        "offsets": [(row[0], row[1]) for row in tensors["offsets"].tolist()],
        "maps": TokenActivationMaps(**{name: tensors[name] for name in _MAP_TENSORS}, layout=layout),
        "candidates": [[_candidate(entry) for entry in step] for step in _list(document, "candidates", list)],
        "images": [_read_image(tensors, index) for index in range(_image_count(document, tensors))],
        "prompt": _get(document, "prompt", str),
        "context_tokens": context_tokens,
        "model": _get(document, "model", str),
        "elapsed": {name: _number(seconds, f"elapsed {name!r}") for name, seconds in elapsed.items()},
        # Files of earlier versions have none.
        "source": _get({"source": "generated", **document}, "source", str),
        "states": _kept_states(document, tensors, layout),
    }


_KEPT = ("hidden", "token_ids", "positions", "row_ids", "rows")


def _kept_tensors(explanation: Fields) -> dict[str, torch.Tensor]:
    """Gather what is written of states that were kept; of the classifier the rows of the tokens at hand."""
    states = explanation.states
    assert states is not None
    candidates = [c.token_id for step in explanation.candidates for c in step]
    layout, every = states.layout, states.token_ids
    said = [every[layout.prompt], every[layout.answer_start :], torch.tensor(candidates, dtype=torch.int64)]
    ids = torch.unique(torch.cat(said))
    made = {
        "hidden": states.hidden.cpu().contiguous(),
        "token_ids": every,
        "positions": torch.cat([layout.visual_positions, layout.prompt, torch.tensor([layout.answer_start])]),
        "row_ids": ids,
        "rows": states.rows(ids).detach().to("cpu", states.hidden.dtype).contiguous(),
    }
    return {f"states.{name}": made[name] for name in _KEPT}


def _kept_states(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], layout: Layout) -> KeptStates | None:
    """Read states that were kept, and check them against the layout; None if there are none."""
    found = [tensors.get(f"states.{name}") for name in _KEPT]
    if all(value is None for value in found):
        return None
    hidden, token_ids, positions, row_ids, rows = found
    sizes = [len(grid) for grid in layout.grids]
    if (
        hidden is None
        or token_ids is None
        or positions is None
        or row_ids is None
        or rows is None
        or hidden.ndim != 2
        or not hidden.is_floating_point()
        or tuple(token_ids.shape) != (hidden.shape[0] + 1,)
        or tuple(rows.shape) != (row_ids.numel(), hidden.shape[1])
        or rows.dtype != hidden.dtype
        or any(value.dtype != torch.int64 or value.ndim != 1 for value in (token_ids, positions, row_ids))
        or positions.numel() != sum(sizes) + layout.prompt.numel() + 1
        or bool((row_ids.diff() <= 0).any())
        or not bool(torch.isfinite(hidden).all() and torch.isfinite(rows).all())
    ):
        raise ValueError("states: expected the five arrays of states that were kept, got others")
    *parts, prompt, start = positions.split([*sizes, layout.prompt.numel(), 1])
    if hidden.shape[0] - int(start) != len(_get(document, "tokens", list)) - 1:
        raise ValueError("states: expected a state for each token but the last, got another number of them")
    grids = [replace(grid, positions=part) for grid, part in zip(layout.grids, parts, strict=True)]
    kernel_size = _get({"kernel_size": 3, **document}, "kernel_size", int)
    check_options(None, kernel_size)
    return KeptStates(hidden, token_ids, Layout(grids, prompt, int(start)), Rows(row_ids, rows), None, kernel_size)


def _get(mapping: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = mapping.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {str(value)[:60]!r}")
    return float(value)


def _list(mapping: Mapping[str, Any], name: str, kind: type[_T]) -> list[_T]:
    return [_get({name: value}, name, kind) for value in _get(mapping, name, list)]


def _candidate(entry: Any) -> Candidate:
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"candidates: expected [id, token, probability], got {str(entry)[:60]!r}")
    fields = dict(zip(("token_id", "token"), entry, strict=False))
    return Candidate(
        _get(fields, "token_id", int), _get(fields, "token", str), _number(entry[2], "candidates: probability")
    )


def _image_count(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> int:
    """Read the number of images, of which there must be as many arrays: a wrong number must cost no time."""
    count = _get(document, "images", int)
    got = sum(name.startswith("image.") for name in tensors)
    if count != got:
        raise ValueError(f"images: expected as many as image arrays, which are {got}, got {count}")
    return count


def _read_image(tensors: Mapping[str, torch.Tensor], index: int) -> Image.Image:
    name = f"image.{index}"
    data = tensors.get(name)
    if data is None or data.dtype != torch.uint8 or data.ndim != 1:
        raise ValueError(f"expected the array {name!r} to be a vector of bytes, got another")
    try:
        with warnings.catch_warnings():
            # Between Pillow's limit and twice that it only warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data.numpy().tobytes()), formats=("PNG",))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"expected the array {name!r} to be a PNG image, got {reason}") from error
    if image.mode != "RGB":
        raise ValueError(f"expected the array {name!r} to be an RGB image, got mode {image.mode}")
    # A plain image without the file's metadata, as it was given.
    return Image.frombytes("RGB", image.size, image.tobytes())
