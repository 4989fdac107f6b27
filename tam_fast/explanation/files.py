"""An explanation as two files: arrays and images as safetensors, the rest as JSON; all that is read is checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from tam_fast.explanation.arrays import (
    contrast_arrays,
    kept_arrays,
    picture_arrays,
    read_contrast,
    read_images,
    read_kept,
    read_videos,
    video_arrays,
)
from tam_fast.explanation.checks import check_nan, check_values, count_nan
from tam_fast.explanation.entries import entry, items, number
from tam_fast.explanation.replacing import FORMAT, check_replaceable, fitting_stem, replace_files
from tam_fast.explanation.result import Result
from tam_fast.explanation.words import Candidate
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.layout import Grid, Layout

__all__ = ["FORMAT", "FORMAT_VERSION", "encode", "read", "write"]

FORMAT_VERSION = 1

_Made = TypeVar("_Made", bound=Result)

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


def write(path: str | os.PathLike[str], explanation: Result, force: bool = False) -> tuple[Path, Path]:
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


def encode(explanation: Result) -> tuple[bytes, bytes]:
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
    tensors |= picture_arrays(explanation.images) | video_arrays(explanation.videos)
    tensors |= contrast_arrays(explanation.contrast)
    if explanation.states is not None:
        candidates = [candidate.token_id for step in explanation.candidates for candidate in step]
        tensors |= kept_arrays(explanation.states, candidates)
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
        **_asked(explanation),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    # A lone surrogate may stand in a decoded piece: surrogatepass keeps it.
    return arrays, text.encode("utf-8", "surrogatepass")


def _asked(explanation: Result) -> dict[str, Any]:
    """Gather what only some explanations have."""
    made: dict[str, Any] = {
        "steps": explanation.steps,
        "thinking": explanation.thinking,
        "method": None if explanation.method == "tam" else explanation.method,
        "messages": explanation.messages,
        "videos": [{"frames": len(video), "times": video.times} for video in explanation.videos] or None,
    }
    try:
        same = json.loads(json.dumps(explanation.messages)) == explanation.messages
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError("messages: expected what JSON can hold, got other objects or numbers in them")
    return {name: value for name, value in made.items() if value is not None}


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
    tokens = items(document, "tokens", str)
    context_tokens = items(document, "context_tokens", str)
    boxes = items(document, "grids", dict)
    shapes = [(entry(grid, "height", int), entry(grid, "width", int)) for grid in boxes]
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
    for given, (height, width) in zip(boxes, shapes, strict=True):
        positions = tensors["visual_positions"][start : start + height * width]
        box = tuple(number(edge, "box") for edge in entry(given, "box", list))
        kind, source, frame = entry(given, "kind", str), entry(given, "source", int), entry(given, "frame", int)
        grids.append(Grid(positions, height, width, kind, source, frame, cast(tuple[float, float, float, float], box)))
        start += height * width
    layout = Layout(tuple(grids), tensors["prompt_positions"], entry(document, "answer_start", int))
    elapsed = entry(document, "elapsed", dict)
    optional = ("steps", "thinking", "messages", "method")
    asked = {name: document[name] for name in optional if document.get(name) is not None}
    steps = items(asked, "steps", int) if "steps" in asked else range(len(tokens))
    return {
        "tokens": tokens,
        "token_ids": tensors["token_ids"].tolist(),
        "text": entry(document, "text", str),
        "offsets": [(row[0], row[1]) for row in tensors["offsets"].tolist()],
        "maps": TokenActivationMaps(**{name: tensors[name] for name in _MAP_TENSORS}, layout=layout),
        "candidates": [[_candidate(values) for values in step] for step in items(document, "candidates", list)],
        "images": read_images(document, tensors),
        "prompt": entry(document, "prompt", str),
        "context_tokens": context_tokens,
        "model": entry(document, "model", str),
        "elapsed": {name: number(seconds, f"elapsed {name!r}") for name, seconds in elapsed.items()},
        # Files of earlier versions have none.
        "source": entry({"source": "generated", **document}, "source", str),
        "states": read_kept(document, tensors, layout, steps[-1] if steps else -1),
        "videos": read_videos(document, tensors),
        "contrast": read_contrast(tensors),
        **asked,
    }


def _candidate(values: Any) -> Candidate:
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"candidates: expected [id, token, probability], got {str(values)[:60]!r}")
    fields = dict(zip(("token_id", "token"), values, strict=False))
    return Candidate(
        entry(fields, "token_id", int), entry(fields, "token", str), number(values[2], "candidates: probability")
    )
