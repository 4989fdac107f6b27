"""What each token of an answer rests on, text and image alike: :class:`Graph`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tam_fast.explanation.result import Result
from tam_fast.maps.canvas import Canvas

__all__ = ["Graph", "graph_of"]

_HALF = 0.5  # of a map's maximum: cells above it form the region that an edge names


class Graph(list[tuple[str, str, dict[str, Any]]]):
    """Edges (from, to, attributes) to each token of an answer from what speaks for it most.

    Nodes are named ``"prompt:0"`` (a token of the prompt's text), ``"answer:0"`` (a generated token, by its place in
    all that was generated; of a prompt that was explained itself, its words), ``"thinking:0"`` (the same within a
    thinking section), ``"image:0"`` and ``"video:0:3"`` (a temporal index of a video). There is one edge between two
    nodes at most. Attributes are JSON-able:

    - ``weight``: relevance of a context token, or the maximum of the token's map on the image; both are on the common
      scale of Eq. 3 of the TAM paper, so that they can be compared.
    - ``kind``: ``"text"`` or ``"image"``.
    - ``region``: of an image or frame, x0, y0, x1, y1 as fractions of its width and height: where the map is above
      half its maximum.
    - ``source`` and ``target``: what the two tokens read.

    ``networkx.DiGraph(graph)`` takes it as it is.
    """

    def to_networkx(self) -> Any:
        """Make a ``networkx.DiGraph``, its nodes with what they read as ``text``.

        Raises
        ------
        ImportError
            If networkx is not installed.
        """
        try:
            import networkx
        except ImportError as error:
            raise ImportError("to_networkx: expected networkx to be installed: pip install networkx") from error
        made = networkx.DiGraph()
        for source, _, attributes in self:
            made.add_node(source, text=attributes["source"])
        for _, target, attributes in self:
            made.add_node(target, text=attributes["target"])
        made.add_edges_from(self)
        return made


def graph_of(result: Result, canvases: Sequence[Canvas], top: int) -> Graph:
    """Build the graph of an answer.

    Parameters
    ----------
    result : Result
    canvases : sequence of Canvas
        Of its layout.
    top : int
        Context tokens a token at most.

    Raises
    ------
    TypeError, ValueError
        If `top` is no whole number of at least 1.
    """
    if isinstance(top, bool) or not hasattr(top, "__index__"):
        raise TypeError(f"top: expected a whole number, got {top!r}")
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    edges = Graph()
    steps, words = result.places, result.context_tokens
    prompt = len(words) - (steps[-1] if steps else 0)
    thought = _thought(words[prompt:], result.tokens, result.thinking)
    nodes = [f"prompt:{place}" for place in range(prompt)]
    nodes += [_named(place, thought) for place in range(len(words) - prompt)]
    for row, (step, token) in enumerate(zip(steps, result.tokens, strict=True)):
        name = _named(step, thought)
        known = result.relevance[row, : prompt + step]
        values, places = known.topk(min(int(top), known.numel()))
        for weight, place in zip(values.tolist(), places.tolist(), strict=True):
            if weight > 0:
                attributes = {"weight": weight, "kind": "text", "source": words[place], "target": token}
                edges.append((nodes[place], name, attributes))
        for canvas in canvases:
            raster = torch.nan_to_num(canvas.join(result.maps.maps[row]), nan=0.0)
            weight = float(raster.max())
            if weight > 0:
                number = f"image:{canvas.source}" if canvas.frame is None else f"video:{canvas.source}:{canvas.frame}"
                attributes = {
                    "weight": weight,
                    "kind": "image",
                    "region": _region(raster, canvas),
                    "source": number,
                    "target": token,
                }
                edges.append((number, name, attributes))
    return edges


def _named(place: int, thought: int) -> str:
    """Name the node of a generated token: of the first `thought` as of the thinking section."""
    return f"thinking:{place}" if place < thought else f"answer:{place}"


def _thought(before: Sequence[str], tokens: Sequence[str], thinking: str | None) -> int:
    """Count the generated tokens up to the end of the thinking section's text; 0 if there is none.

    The section's text is a part of the pieces run together, and the first such part.
    """
    if not thinking:
        return 0
    pieces = [*before, tokens[-1]] if tokens else list(before)
    start = "".join(pieces).find(thinking)
    if start < 0:
        return 0
    ends = accumulate(len(piece) for piece in pieces)
    return 1 + sum(end < start + len(thinking) for end in ends)


def _region(raster: Tensor, canvas: Canvas) -> list[float]:
    """Find the rectangle around the cells above half the maximum."""
    strong = raster >= _HALF * raster.max()
    rows, columns = (torch.nonzero(strong.any(axis)).flatten() for axis in (1, 0))
    x0, y0, x1, y1 = canvas.box
    wide, high = (x1 - x0) / canvas.width, (y1 - y0) / canvas.height
    return [
        x0 + float(columns[0]) * wide,
        y0 + float(rows[0]) * high,
        x0 + float(columns[-1] + 1) * wide,
        y0 + float(rows[-1] + 1) * high,
    ]
