"""What each token of an answer rests on, text and image alike: :class:`Graph`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.canvas import Canvas

__all__ = ["Graph", "graph_of"]

_HALF = 0.5  # of a map's maximum: cells above it form the region that an edge names


class Graph(list[tuple[str, str, dict[str, Any]]]):
    """Edges (from, to, attributes) to each token of an answer from what speaks for it most.

    Nodes are named ``"prompt:0"`` (a token of the prompt's text), ``"answer:0"`` and ``"image:0"``. Attributes are
    JSON-able:

    - ``weight``: relevance of a context token, or the maximum of the token's map on the image; both are on the common
      scale of Eq. 3 of the TAM paper, so that they can be compared.
    - ``kind``: ``"text"`` or ``"image"``.
    - ``region``: of an image, x0, y0, x1, y1 as fractions of its width and height: where the map is above half its
      maximum.
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


def graph_of(
    maps: Tensor,
    relevance: Tensor,
    canvases: Sequence[Canvas],
    tokens: Sequence[str],
    context_tokens: Sequence[str],
    top: int,
) -> Graph:
    """Build the graph of an answer.

    Parameters
    ----------
    maps : (T, N) float32
    relevance : (T, K) float32
    canvases : sequence of Canvas
    tokens : sequence of T str
    context_tokens : sequence of K str
        Those of the prompt, then those of the answer but the last.
    top : int
        Context tokens a token at most.
    """
    if isinstance(top, bool) or not hasattr(top, "__index__"):
        raise TypeError(f"top: expected a whole number, got {top!r}")
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    edges = Graph()
    prompt = len(context_tokens) - max(0, len(tokens) - 1)
    for step, token in enumerate(tokens):
        name = f"answer:{step}"
        known = relevance[step, : prompt + step]
        if known.numel():
            values, places = known.topk(min(top, known.numel()))
            for weight, place in zip(values.tolist(), places.tolist(), strict=True):
                if weight > 0:
                    source = f"prompt:{place}" if place < prompt else f"answer:{place - prompt}"
                    attributes = {
                        "weight": weight,
                        "kind": "text",
                        "source": context_tokens[place],
                        "target": token,
                    }
                    edges.append((source, name, attributes))
        for canvas in canvases:
            raster = torch.nan_to_num(canvas.join(maps[step]), nan=0.0)
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
