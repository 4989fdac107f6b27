"""Inputs, and the peers that a user would otherwise pick, each with the check of its result."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import oracle
import tolerances
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import generic_filter, median_filter
from scipy.optimize import minimize_scalar
from torch import Tensor

import tam_fast
from bench.measure import Peer, expect_close, expect_equal
from tam_fast.backends import reference

Array = np.ndarray
Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((128, 36, 36), (128, 24, 24), (256, 16, 16), (8, 256, 256))
FILTER_CASES: tuple[tuple[Shape, int], ...] = (*((shape, 3) for shape in SHAPES), ((128, 36, 36), 5))
CAUSAL_SIZES = ((150, 100, 576), (300, 256, 1296))
# What a plain float32 way of doing it may be off by; tam_fast answers to the tests' tolerances.
PEER = 5e-6


def times(shape: Sequence[int]) -> str:
    """128x36x36."""
    return "x".join(map(str, shape))


def filter_case(shape: Shape, kernel_size: int) -> str:
    """Name of a case of the filter."""
    return f"{times(shape)}, {kernel_size}x{kernel_size}"


def causal_case(size: tuple[int, int, int]) -> str:
    """Name of a case of the causal inference."""
    return f"{size[0]} prompt and {size[1]} answer tokens, {size[2]:,} positions"


# The rank Gaussian filter.


@cache
def maps(shape: Shape) -> Array:
    """Dense activation-like maps in [0, 1], float32."""
    return np.random.default_rng(7).random(shape, dtype=np.float32)


@cache
def filtered(shape: Shape, kernel_size: int) -> Array:
    """What the oracle makes of the maps."""
    return oracle.rank_gaussian_filter(maps(shape), kernel_size)


def numpy_windows(x: Array, kernel_size: int) -> Array:
    """The filter in whole-array numpy: sorted windows, weights, weighted sum."""
    half, n = kernel_size // 2, kernel_size**2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)), mode="reflect")
    v = np.sort(sliding_window_view(padded, (kernel_size, kernel_size), (1, 2)).reshape(*x.shape, n), axis=-1)
    mean, deviation = v.mean(-1), v.std(-1)
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        t = (mean / deviation) ** 2 / 2
        weights = np.exp(-((np.arange(n, dtype=x.dtype) - n // 2) ** 2) * t[..., None])
        return np.where(deviation > 0, (weights * v).sum(-1) / weights.sum(-1), v[..., 0])


def torch_windows(x: Tensor, kernel_size: int) -> Tensor:
    """The filter in torch: unfold, sort, weights, weighted sum."""
    half, n = kernel_size // 2, kernel_size**2
    padded = torch.nn.functional.pad(x[:, None], (half,) * 4, mode="reflect")
    v = torch.nn.functional.unfold(padded, kernel_size).transpose(1, 2).sort(-1).values
    mean, deviation = v.mean(-1), v.std(-1, correction=0)
    weights = torch.exp(-((torch.arange(n) - n // 2) ** 2) * ((mean / deviation) ** 2 / 2)[..., None])
    result = torch.where(deviation > 0, (weights * v).sum(-1) / weights.sum(-1), v[..., 0])
    return result.view(x.shape)


def plain_window(values: Array) -> float:
    """The filter's value of one window, straight from the definition."""
    v = np.sort(values)
    mean = v.mean()
    deviation = v.std()
    if mean <= 0:
        return 0.0
    if deviation == 0:
        return float(v[0])
    variation = deviation / mean
    rank = np.arange(v.size) - v.size // 2
    weights = np.exp(-(rank**2) / (2 * variation**2))
    return float((weights * v).sum() / weights.sum())


def plain_loop(x: Array, kernel_size: int) -> Array:
    """The filter as a loop over windows, in float64: how the published program goes about it."""
    half = kernel_size // 2
    out = np.empty(x.shape)
    for index, raster in enumerate(x):
        padded = np.pad(raster.astype(np.float64), half, mode="reflect")
        for row in range(raster.shape[0]):
            for column in range(raster.shape[1]):
                window = padded[row : row + kernel_size, column : column + kernel_size].ravel()
                out[index, row, column] = plain_window(window)
    return out


def has_out() -> bool:
    """Whether the public operator can write to a tensor of the caller's."""
    return "out" in inspect.signature(tam_fast.rank_gaussian_filter).parameters


def opencv_median(x: Array, kernel_size: int) -> Callable[[], Array]:
    """cv2.medianBlur of every map, into one destination that is kept."""
    out = np.empty_like(x)
    pairs = list(zip(x, out, strict=True))

    def run() -> Array:
        for source, target in pairs:
            cv2.medianBlur(source, kernel_size, dst=target)
        return out

    return run


def median_check(x: Array, kernel_size: int, *, border: bool) -> Callable[[Any], None]:
    """Check for the exact median of every window, or of those that lie within the map."""
    half = kernel_size // 2

    def check(got: Any) -> None:
        padded = np.pad(x, ((0, 0), (half, half), (half, half)), mode="reflect") if border else x
        windows = sliding_window_view(padded, (kernel_size, kernel_size), (1, 2))
        expected = np.median(windows.reshape(*windows.shape[:3], -1), axis=-1)
        expect_equal(got if border else np.asarray(got)[:, half:-half, half:-half], expected, "median")

    return check


def filter_check(shape: Shape, kernel_size: int, tolerance: float) -> Callable[[Any], None]:
    """Check against the oracle; maps are in [0, 1]."""
    return lambda got: expect_close(got, filtered(shape, kernel_size), tolerance, "filtered maps")


def filter_peers(shape: Shape, kernel_size: int, *, slow: bool = True) -> list[Peer]:
    """Every peer of the rank Gaussian filter on maps of one shape; work is in pixels."""
    x = maps(shape)
    tensor, pixels = torch.from_numpy(x), float(x.size)
    ours = filter_check(shape, kernel_size, tolerances.FILTER_DENSE)
    theirs = filter_check(shape, kernel_size, PEER)
    peers = [Peer("tam_fast", lambda: tam_fast.rank_gaussian_filter(tensor, kernel_size), ours, pixels)]
    if has_out():
        out = torch.empty_like(tensor)
        peers.append(
            Peer(
                "tam_fast, out= reused",
                lambda: tam_fast.rank_gaussian_filter(tensor, kernel_size, out=out),
                ours,
                pixels,
            )
        )
    if kernel_size in (3, 5):
        # OpenCV has no other windows for float32; it repeats the edge, so only windows within the map compare.
        interior = median_check(x, kernel_size, border=False)
        peers.append(Peer("cv2.medianBlur (median only)", opencv_median(x, kernel_size), interior, pixels))
    if importlib.util.find_spec("kornia") is not None:
        from kornia.filters import median_blur

        peers.append(
            Peer(
                "kornia median_blur (median only)",
                lambda: median_blur(tensor[:, None], kernel_size)[:, 0],
                median_check(x, kernel_size, border=False),
                pixels,
            )
        )
    peers += [
        Peer(
            "scipy median_filter (median only)",
            lambda: median_filter(x, size=(1, kernel_size, kernel_size), mode="mirror"),
            median_check(x, kernel_size, border=True),
            pixels,
        ),
        Peer("numpy windows + sort", lambda: numpy_windows(x, kernel_size), theirs, pixels),
        Peer("torch unfold + sort", lambda: torch_windows(tensor, kernel_size), theirs, pixels),
    ]
    if slow:
        peers += slow_filter_peers(kernel_size)
    return peers


def slow_filter_peers(kernel_size: int) -> list[Peer]:
    """Loops in Python, whose time a pixel depends on no size: two maps are enough."""
    shape = (2, 36, 36)
    x, pixels = maps(shape), float(np.prod(shape))
    tensor = torch.from_numpy(x)
    check = filter_check(shape, kernel_size, PEER)

    def callback() -> Array:
        return np.stack([generic_filter(m, plain_window, size=kernel_size, mode="mirror") for m in x])

    note = "on two 36x36 maps"
    return [
        Peer("scipy generic_filter + callback", callback, check, pixels, note=note),
        Peer("plain Python loop", lambda: plain_loop(x, kernel_size), check, pixels, note=note),
        Peer(
            "reference backend's loop",
            lambda: reference.rank_gaussian_filter([tensor], kernel_size)[0],
            check,
            pixels,
            note=note,
        ),
    ]


# Causal inference.


@cache
def causal_inputs(n_p: int, n_a: int, n: int) -> tuple[Array, Array, Array]:
    """Activation (T, N), context (K, N) and triangular relevance (T, K) of an answer of n_a tokens."""
    generator = np.random.default_rng(3)
    context = generator.random((n_p + n_a - 1, n), dtype=np.float32)
    relevance = np.tril(generator.random((n_a, n_p + n_a - 1), dtype=np.float32), k=n_p - 1)
    return generator.random((n_a, n), dtype=np.float32), context, relevance


def minimised_scale(activation: Array, interference: Array) -> float:
    """Scale of Eq. 5 by a scalar minimiser, as the published program finds it."""
    return float(minimize_scalar(lambda s: ((activation - s * interference) ** 2).sum()).x)


def causal_token_by_token(activation: Array, context: Array, relevance: Array) -> tuple[Array, Array]:
    """As the published program goes about it: a weighted stack and a scalar minimiser for every token."""
    causal, scales = [], []
    for a, r in zip(activation, relevance, strict=True):
        used = r > 0
        interference = (np.stack(list(context[used])) * r[used, None]).sum(0) / (r.sum() + 1e-8)
        scale = minimised_scale(a, interference)
        causal.append(np.maximum(a - scale * interference, 0))
        scales.append(scale)
    return np.stack(causal), np.array(scales)


def causal_numpy(activation: Array, context: Array, relevance: Array) -> tuple[Array, Array]:
    """One product and the closed form, in numpy."""
    interference = (relevance @ context) / (relevance.sum(-1, keepdims=True) + 1e-8)
    scale = (activation * interference).sum(-1) / (interference * interference).sum(-1)
    return np.maximum(activation - scale[:, None] * interference, 0), scale


def causal_torch(activation: Tensor, context: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """One product and the closed form, in torch."""
    interference = (relevance @ context) / (relevance.sum(-1, keepdim=True) + 1e-8)
    scale = (activation * interference).sum(-1) / (interference * interference).sum(-1)
    return (activation - scale[:, None] * interference).relu(), scale


def causal_peers(size: tuple[int, int, int]) -> list[Peer]:
    """Every peer of the causal inference of a whole answer; work is one answer."""
    inputs = causal_inputs(*size)
    tensors = [torch.from_numpy(value) for value in inputs]
    expected = oracle.estimated_causal_inference(*inputs)

    def check(tolerance: float, relative: float) -> Callable[[Any], None]:
        def compare(got: Any) -> None:
            expect_close(got[0], expected[0], tolerance, "causal maps")  # activations are in [0, 1]
            expect_close(np.asarray(got[1]) / expected[1], np.ones_like(expected[1]), relative, "scale, relative")

        return compare

    return [
        Peer("tam_fast", lambda: tam_fast.estimated_causal_inference(*tensors), check(tolerances.CAUSAL, 2e-6)),
        Peer("torch, vectorised", lambda: causal_torch(*tensors), check(PEER, PEER)),
        Peer("numpy, vectorised", lambda: causal_numpy(*inputs), check(PEER, PEER)),
        Peer("published way, token by token", lambda: causal_token_by_token(*inputs), check(PEER, PEER)),
    ]


# Whole answers.


@dataclass(frozen=True, eq=False)
class Answer:
    """States and tokens of an answer: system prompt, image, question, the tail of a chat template, answer."""

    hidden: Tensor  # (S, C)
    classifier: Tensor  # (V, C)
    token_ids: Tensor  # (S + 1,)
    layout: tam_fast.Layout

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return int(self.token_ids.numel()) - self.layout.answer_start

    @property
    def positions(self) -> int:
        """Visual positions."""
        return int(self.layout.visual_positions.numel())

    @property
    def prompt(self) -> int:
        """Text tokens of the prompt."""
        return int(self.layout.prompt.numel())

    @property
    def mebibytes(self) -> float:
        """Of the states and the maps to be made."""
        return (self.hidden.numel() * self.hidden.element_size() + 4 * self.tokens * self.positions) / 2**20

    def unique(self) -> Tensor:
        """Distinct tokens of question and answer, whose scores are needed."""
        return torch.cat([self.token_ids[self.layout.prompt], self.token_ids[self.layout.answer_start :]]).unique()


def random_answer(
    tokens: int, grids: Sequence[tuple[int, int]], channels: int, vocabulary: int, *, prompt: int = 30, seed: int = 5
) -> Answer:
    """Random states and classifier; nearly all tokens differ, which is the most work, but some occur twice."""
    generator = torch.Generator().manual_seed(seed)
    places, begin, tail = [], 4, 5
    for height, width in grids:
        places.append(tam_fast.Grid(range(begin, begin + height * width), height, width))
        begin += height * width
    start = begin + prompt + tail
    positions = start + tokens - 1
    hidden = torch.randn(positions, channels, generator=generator)
    classifier = torch.randn(vocabulary, channels, generator=generator).mul_(channels**-0.5)
    ids = torch.randint(0, vocabulary, (start + tokens,), generator=generator)
    text = torch.cat([torch.arange(begin, begin + prompt), torch.arange(start, start + tokens)])
    ids[text] = torch.randperm(vocabulary, generator=generator)[: text.numel()]
    ids[-1], ids[-3] = ids[start], ids[begin]
    return Answer(hidden, classifier, ids, tam_fast.Layout(places, torch.arange(begin, begin + prompt), start))


def small_classifier(answer: Answer, extra: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """The classifier's rows that occur, and the token ids renumbered to them: what the oracle need look at."""
    rows, ids = torch.cat([answer.token_ids, torch.tensor(extra, dtype=torch.int64)]).unique(return_inverse=True)
    return answer.classifier[rows], ids[: answer.token_ids.numel()]


def oracle_answer(answer: Answer, compat: str | None = None) -> oracle.Answer:
    """Ask the oracle for all maps of the answer."""
    extra: tuple[int, ...] = ()
    if compat == "official":
        # Keep the row that the whole vocabulary's maximum is at.
        extra = (int((answer.classifier @ answer.hidden[answer.layout.prompt[0]]).argmax()),)
    classifier, ids = small_classifier(answer, extra)
    return oracle.activation_maps(
        answer.hidden.numpy(),
        classifier.numpy(),
        ids.numpy(),
        answer.layout.visual_positions.numpy(),
        answer.layout.sizes,
        answer.layout.prompt.numpy(),
        answer.layout.answer_start,
        compat=compat,
    )


def oracle_map(answer: Answer, target: int) -> Array:
    """Ask the oracle's functions for the map of one token alone (N,): the whole of a long answer takes too long."""
    layout = answer.layout
    places = torch.cat([layout.prompt, layout.answer_start - 1 + torch.arange(target + 1)]).numpy()
    ids = torch.cat([answer.token_ids[layout.prompt], answer.token_ids[layout.answer_start :]])[: places.size]
    visual = layout.visual_positions.numpy()
    classifier = answer.classifier[ids].numpy()
    rows = range(places.size)
    context = oracle.token_scores(answer.hidden[visual].numpy(), classifier, rows)
    raw = oracle.token_scores(answer.hidden[places[:-1]].numpy(), classifier[-1:], [0])[0]
    relevance = np.where(ids[:-1].numpy() == int(ids[-1]), 0.0, raw)
    causal = oracle.estimated_causal_inference(context[-1:], context[:-1], relevance[None])[0][0]
    low, high = min(causal.min(), raw.min(initial=np.inf)), max(causal.max(), raw.max(initial=-np.inf))
    normalised, out, begin = (causal - low) / (high - low), [], 0
    for height, width in layout.sizes:
        raster = normalised[begin : begin + height * width].reshape(height, width)
        out.append(oracle.rank_gaussian_filter(raster).ravel())
        begin += height * width
    return np.concatenate(out)


def published_logits(answer: Answer) -> tuple[Array, dict[int, int]]:
    """Logits (S, U) of the classes that the published program looks at, and each class's column.

    The program keeps them for the whole vocabulary; here only columns that are read are kept.
    """
    first = int((answer.classifier @ answer.hidden[answer.layout.prompt[0]]).argmax())
    last = int(answer.token_ids[answer.layout.answer_start - 1])
    classes = torch.cat([answer.unique(), torch.tensor([first, last])]).unique()
    columns = {int(name): column for column, name in enumerate(classes)}
    return (answer.hidden @ answer.classifier[classes].T).numpy(), columns


def published_steps(answer: Answer, logits: Array, columns: dict[int, int], kernel_size: int = 3) -> Array:
    """What the published program does once it has its logits, token by token: maps (T, N).

    The first call treats the prompt's tokens and the first generated one alike and shows the first prompt token's map.
    """
    layout = answer.layout
    n_p, visual = answer.prompt, layout.visual_positions.numpy()
    ids = torch.cat([answer.token_ids[layout.prompt], answer.token_ids[layout.answer_start :]]).tolist()
    places = torch.cat([layout.prompt, layout.answer_start - 1 + torch.arange(answer.tokens)]).numpy()
    classes = list(ids)
    first = logits[places[0]]
    names = np.array(list(columns))
    classes[0] = int(names[first.argmax()])
    classes[n_p] = int(answer.token_ids[layout.answer_start - 1])
    kept: list[Array] = []
    shown: list[Array] = []
    for k, name in enumerate(classes):
        scores = np.maximum(logits[:, columns[name]], 0)
        activation = scores[visual]
        causal = activation
        if k:
            relevance = np.where(np.array(ids[:k]) == ids[k], 0, scores[places[:k]])
            interference = (np.stack(kept) * relevance[:, None]).sum(0) / (relevance.sum() + 1e-8)
            causal = np.maximum(activation - minimised_scale(activation, interference) * interference, 0)
        kept.append(activation)
        text = scores[places[: max(k, n_p)]]
        low, high = min(causal.min(), text.min()), max(causal.max(), text.max())
        normalised = (causal - low) / (high - low)
        parts, begin = [], 0
        for height, width in layout.sizes:
            raster = normalised[begin : begin + height * width].reshape(1, height, width)
            parts.append(plain_loop(raster, kernel_size).ravel())
            begin += height * width
        shown.append(np.concatenate(parts))
    return np.stack([shown[0], *shown[n_p + 1 :]])


def vectorised_torch(answer: Answer, kernel_size: int = 3) -> Tensor:
    """A practised user's torch: gathered rows, one product, a triangular one, the closed form, unfold and sort."""
    layout, n_p = answer.layout, answer.prompt
    ids = torch.cat([answer.token_ids[layout.prompt], answer.token_ids[layout.answer_start :]])
    places = torch.cat([layout.prompt, layout.answer_start - 1 + torch.arange(answer.tokens)])
    scores = (answer.classifier[ids] @ answer.hidden.T).relu()
    every = scores[:, layout.visual_positions]
    text = scores[n_p:][:, places[:-1]]
    later = torch.arange(text.shape[1])[None] >= n_p + torch.arange(answer.tokens)[:, None]
    relevance = text.masked_fill(later | (ids[n_p:, None] == ids[None, :-1]), 0.0)
    causal, _ = causal_torch(every[n_p:], every[:-1], relevance)
    low = torch.minimum(causal.amin(1), text.masked_fill(later, torch.inf).amin(1))[:, None]
    high = torch.maximum(causal.amax(1), text.masked_fill(later, -torch.inf).amax(1))[:, None]
    parts = ((causal - low) / (high - low)).split([height * width for height, width in layout.sizes], dim=1)
    return torch.cat(
        [
            torch_windows(part.reshape(-1, *size), kernel_size).view(part.shape)
            for part, size in zip(parts, layout.sizes, strict=True)
        ],
        dim=1,
    )


def vectorised_numpy(answer: Answer, kernel_size: int = 3) -> Array:
    """The same in numpy."""
    layout, n_p = answer.layout, answer.prompt
    hidden, classifier = answer.hidden.numpy(), answer.classifier.numpy()
    ids = torch.cat([answer.token_ids[layout.prompt], answer.token_ids[layout.answer_start :]]).numpy()
    places = np.concatenate([layout.prompt.numpy(), layout.answer_start - 1 + np.arange(answer.tokens)])
    scores = np.maximum(classifier[ids] @ hidden.T, 0)
    every = scores[:, layout.visual_positions.numpy()]
    text = scores[n_p:][:, places[:-1]]
    later = np.arange(text.shape[1])[None] >= n_p + np.arange(answer.tokens)[:, None]
    relevance = np.where(later | (ids[n_p:, None] == ids[None, :-1]), np.float32(0), text)
    causal, _ = causal_numpy(every[n_p:], every[:-1], relevance)
    low = np.minimum(causal.min(1), np.where(later, np.inf, text).min(1))[:, None].astype(np.float32)
    high = np.maximum(causal.max(1), np.where(later, -np.inf, text).max(1))[:, None].astype(np.float32)
    normalised, parts, begin = (causal - low) / (high - low), [], 0
    for height, width in layout.sizes:
        part = normalised[:, begin : begin + height * width].reshape(-1, height, width)
        parts.append(numpy_windows(part, kernel_size).reshape(part.shape[0], -1))
        begin += height * width
    return np.concatenate(parts, axis=1)
