"""How well the model does while it is trained, and that it runs elsewhere as it was trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tam_fast.demo import scenes as sc
from tam_fast.demo.train.batches import Batch, make_batch
from tam_fast.demo.train.lean import Lean
from tam_fast.demo.train.packing import pack
from tam_fast.demo.train.plan import GRID, Plan
from tam_fast.demo.train.precision import narrow
from tam_fast.demo.train.samples import Sample, film_planes
from tam_fast.demo.train.words import Words

__all__ = ["check_parity", "score", "validate"]

_SEED = 987_654


def score(figures: dict[str, float]) -> float:
    """One number to choose among seeds by: the mean of all shares that validation reports."""
    shares = [value for name, value in figures.items() if name != "dark"]
    return round(float(np.mean(shares)), 4) if shares else 0.0


def _sample(kind: str, rng: np.random.Generator) -> Sample | None:
    """Draw one validation sample of a kind of turn; None where the scene does not settle such a question."""
    if kind in sc.PAIR_QUESTIONS:
        pair = sc.make_pair(rng)
        turn = sc.ask_pair(pair, kind, rng)
        planes: tuple[tuple[sc.Scene, ...], ...] = tuple((scene,) for scene in pair)
    elif kind == "event":
        film = sc.make_film(rng, 6)
        turn, planes = sc.Turn("What happens in the video?", sc.what_happens(film), kind), film_planes(film)
    else:
        make = {"caption": sc.make_scene, "flat": sc.make_flat}.get(kind, sc.make_varied)
        scene = make(rng)
        planes = ((scene,),)
        described = sc.Turn(sc.DESCRIBE, sc.caption(scene), kind)
        turn = described if kind in ("caption", "flat") else sc.ask(scene, kind, rng)
    return None if turn is None else Sample(planes, (((turn.question, turn.answer),),), video=kind == "event")


def _samples(kind: str, count: int) -> list[Sample]:
    """Draw validation samples of a kind, none of which are trained on or reported."""
    rng = np.random.default_rng([_SEED, *kind.encode()])
    samples: list[Sample] = []
    while len(samples) < count:
        sample = _sample(kind, rng)
        samples += [] if sample is None else [sample]
    return samples


@torch.no_grad()
def validate(lean: Lean, plan: Plan, words: Words, pictures: bool, grid: int, count: int = 48) -> dict[str, float]:
    """Shares of answers that are right token for token, by kind of question, on scenes of a fixed validation seed.

    ``peak``: the raw map of a colour or shape word peaks on a cell that an object of that word covers. ``dark``: share
    of cells where a function word's logit is not above half the mean peak of the object words: how dense raw maps are.
    """
    lean.model.eval()
    kinds = ["caption", "flat", *[kind for kind in sc.QUESTIONS if kind not in ("caption", "colours", "places")]]
    kinds += list(sc.PAIR_QUESTIONS) if "pair" in plan.kinds else []
    kinds += ["event"] if "film" in plan.kinds else []
    figures: dict[str, float] = {}
    for kind in kinds:
        samples = _samples(kind, count)
        rng = np.random.default_rng(_SEED)
        batch = make_batch(rng, samples, words, grid, pictures=pictures)
        right, cells = _right(lean, batch, with_cells=kind == "caption")
        figures[kind] = round(float(right.float().mean()), 3)
        if kind == "caption":
            figures |= _maps(lean, words, cells, samples, grid)
    return figures


def _maps(lean: Lean, words: Words, states: Tensor, samples: Sequence[Sample], grid: int) -> dict[str, float]:
    """Peaks and density of the raw maps of captions: of states (B, N, C) at the visual slots."""
    function = [words.id(word) for word in (" a", ",", " and", ".")]
    peaks: list[bool] = []
    dark: list[float] = []
    for sample, cells in zip(samples, states, strict=True):
        scene = sample.planes[0][0]
        covered = sc.coverage(scene, grid).reshape(len(scene.objects), -1)
        heights = []
        for word in sorted({word for item in scene.objects for word in (item.colour, item.shape)}):
            fits = [i for i, o in enumerate(scene.objects) if word in (o.colour, o.shape)]
            scores = cells @ lean.words[words.id(f" {word}")]
            peaks.append(bool(covered[fits, int(scores.argmax())].max() > 0.3))
            heights.append(float(scores.max()))
        floor = F.linear(cells, lean.words[function])
        dark.append(float((floor <= 0.5 * np.mean(heights)).float().mean()))
    return {"peak": round(float(np.mean(peaks)), 3), "dark": round(float(np.mean(dark)), 3)}


def _right(lean: Lean, batch: Batch, with_cells: bool, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Which samples (B,) are answered right, and the states (B, N, C) of their slots; some rows of the batch at a time.

    Without `with_cells` there are no such states (B, 0, C).
    """
    right: list[Tensor] = []
    cells: list[Tensor] = []
    shown = lean.before(batch.shape)[1] if with_cells else torch.empty(0, dtype=torch.int64)
    with narrow():
        for begin in range(0, len(batch.tokens), rows):
            some = slice(begin, begin + rows)
            piece = Batch(
                batch.shape,
                batch.tokens[some],
                batch.weights[some],
                batch.words[some],
                pictures=None if batch.pictures is None else batch.pictures[some],
                slots=None if batch.slots is None else batch.slots[some],
            )
            talks = pack(piece.tokens, piece.weights)
            at_cells, states = lean.read(lean.slots(piece), talks, batch.shape, shown)
            wrong = (F.linear(states.float(), lean.words).argmax(-1) != talks.targets) & (talks.weights >= 1.0)
            right.append(torch.zeros(len(piece.tokens)).index_add_(0, talks.samples, wrong.float()) == 0)
            cells.append(at_cells.float())
    return torch.cat(right), torch.cat(cells)


def _examples() -> dict[str, Sample]:
    rng = np.random.default_rng(1)
    asked = (((sc.DESCRIBE, "The image shows a red circle."),), (("How many?", "Two."), ("Where?", "Here.")))
    scene, pair, film = sc.make_varied(rng, extent=(0.8, 1.2)), sc.make_pair(rng), sc.make_film(rng, 6)
    return {
        "image": Sample(((scene,),), asked),
        "pair": Sample(tuple((one,) for one in pair), asked),
        "film": Sample(film_planes(film), asked, video=True),
    }


@torch.no_grad()
def check_parity(lean: Lean, words: Words) -> float:
    """Largest difference of the lean forward's states from the stock model's: an image, two images, a video.

    Raises
    ------
    RuntimeError
        If it exceeds 1e-3: the weights would not run elsewhere as they were trained.
    """
    lean.model.eval()
    worst = 0.0
    for kind, sample in _examples().items():
        batch = make_batch(np.random.default_rng(1), [sample], words, GRID, pictures=True)
        assert batch.pictures is not None
        talks = pack(batch.tokens, batch.weights)
        shown = torch.arange(lean.before(batch.shape)[0].shape[1])
        shared, states = lean.read(lean.slots(batch), talks, batch.shape, shown)
        lengths = (batch.weights[0] > 0).sum(dim=1) - 1
        difference = 0.0
        for talk, own in enumerate(states.split(lengths.tolist())):
            whole = torch.cat([shared[0], own])
            difference = max(difference, float((whole - _stock(lean, batch, talk)[: len(whole)]).abs().max()))
        if not difference < 1e-3:
            raise RuntimeError(f"lean and stock forward differ by {difference} ({kind})")
        worst = max(worst, difference)
    return worst


def _stock(lean: Lean, batch: Batch, talk: int) -> Tensor:
    """Final hidden states (S, C) of the stock model on one talk of a batch's first row."""
    shape, config = batch.shape, lean.model.config
    assert batch.pictures is not None
    places, slots, _ = lean.before(shape)
    ids = torch.cat([torch.zeros(places.shape[1], dtype=torch.int64), batch.tokens[0, talk]])
    texts = torch.cat([lean.prefix] + [lean.between] * (0 if shape.video else shape.planes - 1))
    written = torch.ones(places.shape[1], dtype=torch.bool)
    written[slots] = False
    ids[: len(written)][written] = texts
    ids[slots] = config.video_token_id if shape.video else config.image_token_id
    kinds = torch.zeros_like(ids)
    kinds[slots] = 2 if shape.video else 1
    grid = [shape.planes if shape.video else 1, shape.height, shape.width]
    pixels = batch.pictures[0]
    name = "videos" if shape.video else "images"
    seen = {
        "images": {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid] * shape.planes)},
        "videos": {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([grid])},
    }[name]
    states: Tensor = lean.model.model(
        input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], mm_token_type_ids=kinds.int()[None], **seen
    ).last_hidden_state[0]
    return states
