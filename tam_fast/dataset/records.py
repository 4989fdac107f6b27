"""A row of a part: what of an explanation is kept, and an explanation made of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tam_fast.explanation import Explanation
from tam_fast.explanation.words import Candidate
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.layout import Grid, Layout

__all__ = ["check_kept", "error_record", "explanation_of", "record_of", "schema"]

_FORMATS = {"uint8": np.uint8, "float16": np.float16}


def schema() -> Any:
    """Return the columns of a part, a ``pyarrow.Schema``.

    T is the number of tokens that were explained, N that of cells, K that of context tokens.
    """
    import pyarrow as pa

    text, number, real = pa.string(), pa.int32(), pa.float32()
    word = pa.struct([("text", text), ("start", number), ("stop", number), ("strength", real), ("grounding", real)])
    candidate = pa.struct([("token_id", number), ("token", text), ("probability", real)])
    box = pa.list_(real, 4)
    grid = pa.struct(
        [("height", number), ("width", number), ("kind", text), ("source", number), ("frame", number), ("box", box)]
    )
    return pa.schema(
        [
            pa.field("id", text, nullable=False),
            pa.field("status", text, nullable=False),  # "ok" or "error"
            ("error", text),
            ("prompt", text),
            ("text", text),
            ("token_ids", pa.list_(number)),  # (T,)
            ("tokens", pa.list_(text)),  # (T,)
            ("offsets", pa.list_(number)),  # (2 T,): each token's characters in the text, start and end
            ("steps", pa.list_(number)),  # (T,), or null: 0 to T - 1
            ("words", pa.list_(word)),  # stop: behind the last token
            ("strengths", pa.list_(real)),  # (T,)
            ("scales", pa.list_(real)),  # (T,): s of Eq. 6
            ("scores", pa.list_(real)),  # (T,): how visual a token is, in [0, 1]
            ("flat", pa.list_(pa.bool_())),  # (T,)
            ("candidates", pa.list_(pa.list_(candidate))),  # (T,)
            ("context_tokens", pa.list_(text)),  # (K,)
            ("context_ids", pa.list_(number)),  # (K,)
            ("relevance", pa.list_(pa.binary())),  # (T,) of K bytes, uint8 of [0, 1]
            ("grids", pa.list_(grid)),
            ("positions", pa.list_(number)),  # of the cells in the sequence, as runs: first, count, first, count
            ("prompt_positions", pa.list_(number)),  # as runs
            ("answer_start", number),
            ("source", text),
            ("thinking", text),
            ("map_tokens", pa.list_(number)),  # which tokens, or words with maps="words", `maps` are of; null: all
            ("maps", pa.list_(pa.binary())),  # each of N values, row-major over the grids in order
            ("seconds", real),
        ]
    )


def check_kept(maps: Any) -> tuple[str, int]:
    """Read which maps are kept: ``"tokens"``, ``"words"``, ``"none"``, or ``"top:K"``; the kind, and K.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if maps in ("tokens", "words", "none"):
        return maps, 0
    kind, _, count = str(maps).partition(":")
    if kind == "top" and count.isdecimal() and int(count) > 0:
        return "top", int(count)
    raise ValueError(f"maps: expected tokens, words, none or top:K with K > 0, got {maps!r}")


def record_of(name: str, e: Explanation, maps: str = "tokens", maps_format: str = "uint8") -> dict[str, Any]:
    """Make a row of an explanation.

    Parameters
    ----------
    name : str
        The row's id.
    e : Explanation
    maps : str
        Which maps are kept, see :func:`check_kept`; the K tokens of the largest visual strength with ``"top:K"``.
    maps_format : "uint8" or "float16"
        ``floor(255 x)``, or x rounded.
    """
    kind, count = check_kept(maps)
    strengths = e.visual_strength
    words = e.words
    chosen: list[int] | None = None
    if kind == "none":
        chosen, kept = [], e.maps.maps[:0]
    elif kind == "words":
        chosen = list(range(len(words)))
        kept = torch.stack([e.vector(word) for word in words]) if words else e.maps.maps[:0]
    elif kind == "top":
        chosen = sorted(strengths.argsort(descending=True, stable=True)[:count].tolist())
        kept = e.maps.maps[chosen]
    else:
        kept = e.maps.maps
    layout = e.layout
    return {
        "id": name,
        "status": "ok",
        "error": None,
        "prompt": e.prompt,
        "text": e.text,
        "token_ids": e.token_ids,
        "tokens": e.tokens,
        "offsets": [edge for pair in e.offsets for edge in pair],
        "steps": e.steps,
        "words": [
            {"text": w.text, "start": w.start, "stop": w.stop, "strength": w.strength, "grounding": w.grounding}
            for w in words
        ],
        "strengths": strengths.tolist(),
        "scales": e.maps.scale.tolist(),
        "scores": e.grounding.score.tolist(),
        "flat": e.maps.flat.tolist(),
        "candidates": [
            [{"token_id": c.token_id, "token": c.token, "probability": c.probability} for c in step]
            for step in e.candidates
        ],
        "context_tokens": e.context_tokens,
        "context_ids": e.maps.context_ids.tolist(),
        "relevance": _packed(e.maps.relevance, "uint8"),
        "grids": [
            {"height": g.height, "width": g.width, "kind": g.kind, "source": g.source, "frame": g.frame, "box": g.box}
            for g in layout.grids
        ],
        "positions": _runs(layout.visual_positions.tolist()),
        "prompt_positions": _runs(layout.prompt.tolist()),
        "answer_start": layout.answer_start,
        "source": e.source,
        "thinking": e.thinking,
        "map_tokens": chosen,
        "maps": _packed(kept, maps_format),
        "seconds": e.elapsed.get("total"),
    }


def error_record(name: str, message: str) -> dict[str, Any]:
    """Make the row of what could not be explained."""
    # Names of files are bytes, and may be no text.
    return {"id": name, "status": "error", "error": message.encode("utf-8", "backslashreplace").decode()}


def explanation_of(
    record: Mapping[str, Any], model: str = "", maps: str = "tokens", maps_format: str = "uint8"
) -> Explanation:
    """Make an explanation of a row, without its images.

    Parameters
    ----------
    record : mapping
        The columns of :func:`schema`.
    model : str
    maps, maps_format : str
        As they were made with.

    Raises
    ------
    ValueError
        If the row is an error, or holds the maps of no tokens.
    """
    if record["status"] != "ok":
        raise ValueError(f"{record['id']}: expected a row that was explained, got an error: {record['error']}")
    chosen = record["map_tokens"]
    if check_kept(maps)[0] in ("words", "none"):
        raise ValueError(f"{record['id']}: expected maps of tokens, got those of {maps}; --maps tokens keeps them")
    picked = list(range(len(record["tokens"]))) if chosen is None else chosen
    steps = record["steps"]
    if chosen is not None:
        steps = [t if steps is None else steps[t] for t in chosen]
    grids = []
    positions = torch.tensor(_spread(record["positions"]), dtype=torch.int64)
    begin = 0
    for grid in record["grids"]:
        end = begin + grid["height"] * grid["width"]
        x0, y0, x1, y1 = (float(edge) for edge in grid["box"])
        of = (grid["kind"], grid["source"], grid["frame"], (x0, y0, x1, y1))
        grids.append(Grid(positions[begin:end], grid["height"], grid["width"], *of))
        begin = end
    layout = Layout(tuple(grids), torch.tensor(_spread(record["prompt_positions"])), record["answer_start"])
    whole = len(record["context_ids"])
    # What came behind the last token that is kept is no context of any.
    context = whole if chosen is None else layout.prompt.numel() + steps[-1]
    made = TokenActivationMaps(
        maps=_unpacked(record["maps"], begin, maps_format),
        relevance=_unpacked([record["relevance"][t] for t in picked], whole, "uint8")[:, :context],
        scale=torch.tensor([record["scales"][t] for t in picked], dtype=torch.float32),
        flat=torch.tensor([record["flat"][t] for t in picked], dtype=torch.bool),
        context_ids=torch.tensor(record["context_ids"][:context], dtype=torch.int64),
        target_ids=torch.tensor([record["token_ids"][t] for t in picked], dtype=torch.int64),
        layout=layout,
    )
    edges = record["offsets"]
    return Explanation(
        tokens=[record["tokens"][t] for t in picked],
        token_ids=[record["token_ids"][t] for t in picked],
        text=record["text"],
        offsets=[(edges[2 * t], edges[2 * t + 1]) for t in picked],
        maps=made,
        candidates=[[Candidate(**c) for c in record["candidates"][t]] for t in picked],
        images=[],
        prompt=record["prompt"],
        context_tokens=record["context_tokens"][:context],
        model=model,
        elapsed={} if record["seconds"] is None else {"total": float(record["seconds"])},
        source=record["source"],
        steps=steps,
        thinking=record["thinking"],
    )


def _packed(values: torch.Tensor, maps_format: str) -> list[bytes]:
    array = values.detach().to("cpu", torch.float32).numpy()
    if maps_format == "uint8":
        packed = np.floor(np.nan_to_num(array).clip(0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    else:
        packed = array.astype(_FORMATS[maps_format])
    return [row.tobytes() for row in packed]


def _unpacked(rows: Sequence[bytes], width: int, maps_format: str) -> torch.Tensor:
    kind = _FORMATS[maps_format]
    array = np.frombuffer(b"".join(rows), dtype=kind).astype(np.float32).reshape(len(rows), width)
    return torch.from_numpy(array / np.float32(255.0) if kind is np.uint8 else array)


def _runs(values: Sequence[int]) -> list[int]:
    """Write ascending runs of whole numbers as first and count."""
    made: list[int] = []
    for value in values:
        if made and value == made[-2] + made[-1]:
            made[-1] += 1
        else:
            made += [value, 1]
    return made


def _spread(runs: Sequence[int]) -> list[int]:
    """Undo :func:`_runs`."""
    return [first + k for first, count in zip(runs[::2], runs[1::2], strict=True) for k in range(count)]
