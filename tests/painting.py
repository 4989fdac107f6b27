"""Layouts proven by pixels: strips of a picture are painted, and which positions change before the decoder is read off.

The vision tower's mixing of positions is switched off, so that a position answers for the pixels of its own cell alone.
:func:`measure` paints; :func:`check` compares what it saw with a layout; :func:`mutants` makes layouts that are wrong.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from conftest_models import PROMPT
from families import Built
from PIL import Image

from tam_fast.maps.grid import Grid
from tam_fast.maps.layout import Layout
from tam_fast.models.capture import decoder_of
from tam_fast.models.inputs import PromptInputs, prepare_inputs

_TOLERANCE = 0.25  # of a cell: how far a centre may lie from where the layout says
_STRIPS = 40


class _Seen(Exception):
    """The decoder was reached."""


@dataclass(frozen=True)
class Measured:
    """What painting showed.

    Attributes
    ----------
    prompt : PromptInputs
    visual : (P,) bool
        The positions that the model takes for visual ones.
    edges : dict of (source, axis) to (K + 1,)
        Where the strips begin and end, as fractions of the picture; axis 0 across, 1 down.
    answers : dict of (source, axis) to (K, P)
        How much each position changed with each strip, at most 1 for each position and axis.
    """

    prompt: PromptInputs
    edges: dict[tuple[int, int], np.ndarray]
    answers: dict[tuple[int, int], np.ndarray]

    @property
    def layout(self) -> Layout:
        return self.prompt.layout


def flat(built: Built) -> Any:
    """A copy of a model whose vision tower does not mix positions."""
    model = copy.deepcopy(built.model)
    pattern = re.compile(built.mixers)
    found = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if pattern.search(name):
                weight.zero_()
                found += 1
    assert found, "no parameter is a mixer"
    if built.flatten is not None:
        built.flatten(model)
    return model


def embeddings(
    model: Any, processor: Any, images: Sequence[Image.Image], observe: Any = None
) -> tuple[PromptInputs, torch.Tensor]:
    """A prompt about some pictures, and what the decoder is given at each of its positions, (P, C)."""
    prompt = prepare_inputs(model, processor, images, PROMPT)
    return prompt, given(model, prompt.inputs, observe)


def given(model: Any, inputs: Mapping[str, Any], observe: Any = None) -> torch.Tensor:
    """What the decoder is given at each position of a prompt, (P, C), or what `observe` finds in its arguments."""
    seen: list[torch.Tensor] = []

    def look(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found = kwargs.get("inputs_embeds") if observe is None else observe(kwargs)[None]
        if found is None:
            floats = (value for value in args if isinstance(value, torch.Tensor) and value.is_floating_point())
            found = next(floats, None)
        if found is not None:
            seen.append(found.detach()[0].double())
            raise _Seen

    decoder = decoder_of(model)
    # Phi-4's decoder is given ids, and puts pictures in itself: what counts is what its first layer is given.
    first = getattr(decoder, "layers", [decoder])[0]
    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in {decoder, first}]
    inputs = {
        name: value.to(model.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    try:
        with torch.no_grad():
            model(**inputs)
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    assert seen, "the decoder was not reached"
    return seen[0]


def measure(built: Built, sizes: Sequence[tuple[int, int]], model: Any = None) -> Measured:
    """Paint strips across and down each picture of some sizes (width, height)."""
    model = flat(built) if model is None else model
    generator = np.random.default_rng(7)
    # Not one grey: a normalisation over a cell's channels would hide a change of all of them alike.
    colours = [tuple(int(value) for value in generator.integers(60, 120, 3)) for _ in sizes]
    blank = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    prompt, base = embeddings(model, built.processor, blank, built.observe)
    edges: dict[tuple[int, int], np.ndarray] = {}
    answers: dict[tuple[int, int], np.ndarray] = {}
    for source, size in enumerate(sizes):
        grids = [grid for grid in prompt.layout.grids if grid.source == source]
        for axis in (0, 1):
            finest = min((grid.box[2 + axis] - grid.box[axis]) / grid.shape[1 - axis] for grid in grids)
            count = max(4, min(_STRIPS, size[axis], round(2.5 / finest)))
            marks = np.unique(np.round(np.linspace(0, size[axis], count + 1)).astype(int))
            rows = []
            for first, last in itertools.pairwise(marks):
                painted = [picture.copy() for picture in blank]
                box = (first, 0, last, size[1]) if axis == 0 else (0, first, size[0], last)
                painted[source].paste((255, 20, 200), tuple(int(edge) for edge in box))
                again, changed = embeddings(model, built.processor, painted, built.observe)
                assert torch.equal(again.input_ids, prompt.input_ids)
                rows.append((changed - base).norm(dim=1).numpy())
            answers[source, axis] = np.stack(rows)
            edges[source, axis] = marks / size[axis]
    return Measured(prompt, edges, answers)


def check(measured: Measured, layout: Layout) -> None:
    """Assert that a layout is what painting showed: every cell answers for its own part of its own picture alone."""
    count = measured.prompt.input_ids.numel()
    covered = np.zeros(count, dtype=bool)
    scale = max(float(rows.max()) for rows in measured.answers.values())
    assert scale > 0, "nothing changed"
    quiet = 1e-5 * scale
    for grid in layout.grids:
        covered[grid.positions.numpy()] = True
        for source in {source for source, _ in measured.answers} - {grid.source}:
            for axis in (0, 1):
                others = measured.answers[source, axis][:, grid.positions.numpy()]
                assert others.max() <= quiet, f"picture {source} shows in a cell of picture {grid.source}"
        _check_grid(measured, grid, quiet)
    for rows in measured.answers.values():
        assert rows[:, ~covered].max(initial=0.0) <= quiet, "a position that is no cell sees pixels"


def _check_grid(measured: Measured, grid: Grid, quiet: float) -> None:
    centres, sizes, inside = [], [], []
    for axis in (0, 1):
        cells = grid.shape[1 - axis]
        marks = np.linspace(grid.box[axis], grid.box[2 + axis], cells + 1)
        low, high = marks[:-1].clip(0, 1), marks[1:].clip(0, 1)
        centres.append((low + high) / 2)
        sizes.append(marks[1] - marks[0])
        inside.append((high - low) / (marks[1] - marks[0]))
    for axis in (0, 1):
        edges = measured.edges[grid.source, axis]
        rows = measured.answers[grid.source, axis][:, grid.positions.numpy()].reshape(-1, grid.height, grid.width)
        middles = (edges[:-1] + edges[1:]) / 2
        total = rows.sum(0)
        # Cells that lie mostly beyond the picture may see nothing of it, or only what a resize smears there.
        seen = (inside[1][:, None] > 0.3) & (inside[0][None, :] > 0.3)
        blind = (inside[1][:, None] < 1e-6) | (inside[0][None, :] < 1e-6)
        name = f"{grid.kind} {grid.height} x {grid.width} of picture {grid.source}, {'across' if axis == 0 else 'down'}"
        assert (total[seen] > quiet).all(), f"{name}: a cell sees nothing of its picture"
        assert (total[blind] <= max(quiet, 0.05 * total.max())).all(), f"{name}: a cell of padding sees the picture"
        weight = np.where(rows > 0.02 * rows.max(0), rows, 0.0)
        found = (weight * middles[:, None, None]).sum(0) / np.maximum(weight.sum(0), 1e-30)
        expected = centres[0][None, :] if axis == 0 else centres[1][:, None]
        strip = float(np.diff(edges).max())
        error = np.abs(found - expected)[seen] / sizes[axis]
        allowed = _TOLERANCE + 0.25 * strip / sizes[axis]
        assert (error <= allowed).all(), f"{name}: a centre is {error.max():.2f} cells away (allowed {allowed:.2f})"


def mutants(layout: Layout, visual: torch.Tensor | None = None) -> Iterator[tuple[str, Layout]]:
    """Layouts that are wrong in the ways that layouts get wrong, as far as each differs from the right one.

    `visual` (P,) marks the positions under the image's id, for layouts that take all of them for cells.
    """

    def changed(name: str, make: Any) -> Iterator[tuple[str, Layout]]:
        grids = [make(grid) for grid in layout.grids]
        if any(grid != other for grid, other in zip(grids, layout.grids, strict=True)):
            yield name, Layout(grids, layout.prompt, layout.answer_start)

    def cells(grid: Grid) -> torch.Tensor:
        return grid.positions.reshape(grid.shape)

    def shifted(grid: Grid, x: float, y: float) -> Grid:
        dx, dy = x * (grid.box[2] - grid.box[0]) / grid.width, y * (grid.box[3] - grid.box[1]) / grid.height
        return replace(grid, box=(grid.box[0] + dx, grid.box[1] + dy, grid.box[2] + dx, grid.box[3] + dy))

    yield from changed("transposed", lambda grid: _with(grid, cells(grid).reshape(grid.width, grid.height).T))
    yield from changed("mirrored", lambda grid: _with(grid, cells(grid).flip(1)))
    yield from changed("upside down", lambda grid: _with(grid, cells(grid).flip(0)))
    yield from changed("half a cell across", lambda grid: shifted(grid, 0.55, 0))
    yield from changed("half a cell down", lambda grid: shifted(grid, 0, 0.55))
    whole = (0.0, 0.0, 1.0, 1.0)
    if any(_differs(grid) for grid in layout.grids):
        yield from changed("full box", lambda grid: replace(grid, box=whole))
    tiles = [index for index, grid in enumerate(layout.grids) if grid.kind in ("tile", "crop")]
    if len(tiles) > 1 and layout.grids[tiles[0]].shape == layout.grids[tiles[1]].shape:
        first, second = (layout.grids[index] for index in tiles[:2])
        swapped = list(layout.grids)
        swapped[tiles[0]] = replace(first, positions=second.positions)
        swapped[tiles[1]] = replace(second, positions=first.positions)
        yield "tiles swapped", Layout(swapped, layout.prompt, layout.answer_start)
    sources = {grid.source for grid in layout.grids}
    if len(sources) > 1:
        yield from changed("pictures swapped", lambda grid: replace(grid, source=max(sources) - grid.source))
    if visual is not None:
        # Each grid's rows as if the tokens between them were cells as well.
        grids = []
        for grid in layout.grids:
            start, stop = int(grid.positions.min()), int(grid.positions.max()) + 1
            every = torch.nonzero(visual[start:stop]).flatten() + start
            more = every.numel() - len(grid)
            grids.append(
                Grid(
                    every[: grid.height * (grid.width + 1)],
                    grid.height,
                    grid.width + 1,
                    grid.kind,
                    grid.source,
                    0,
                    grid.box,
                )
                if more >= grid.height - 1 > 0 and every.numel() >= grid.height * (grid.width + 1)
                else grid
            )
        if any(len(grid) != len(other) for grid, other in zip(grids, layout.grids, strict=True)):
            yield "ends of rows as cells", Layout(grids, layout.prompt, layout.answer_start)


def _differs(grid: Grid) -> bool:
    """Whether a box is so far from the whole picture that painting must tell."""
    sizes = ((grid.box[2] - grid.box[0]) / grid.width, (grid.box[3] - grid.box[1]) / grid.height)
    return any(
        abs(edge - full) > 0.6 * sizes[index % 2]
        for index, (edge, full) in enumerate(zip(grid.box, (0.0, 0.0, 1.0, 1.0), strict=True))
    )


def _with(grid: Grid, cells: torch.Tensor) -> Grid:
    """The same box with other positions, which may turn height and width around."""
    return replace(grid, positions=cells.reshape(-1))
