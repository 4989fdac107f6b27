"""Every operator of a backend that works on a device, as calls on tensors that are kept: for tests and sanitizers.

A call's inputs can be written anew between its runs, as a captured graph's are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from answers import Case
from torch import Tensor

import tam_fast
from tam_fast.backends import selection
from tam_fast.maps import device_answer
from tam_fast.maps.tokens import AnswerTokens

Sizes = list[tuple[int, int]]
# What `small` has, in order.
SMALL = (
    "rank_gaussian_filter",
    "token_scores",
    "estimated_causal_inference",
    "least_squares_scale",
    "finish_maps",
    "answer_scores",
    "answer_maps",
    "step_answer",
)


@dataclass(frozen=True)
class Call:
    """One operator on given tensors.

    Attributes
    ----------
    name : str
    run : callable
        Launches it and returns its results, which may be the same tensors each time.
    renew : callable
        Writes other values into the inputs, in place, by a seed.
    """

    name: str
    run: Callable[[], list[Tensor]]
    renew: Callable[[int], None]


class Recorder:
    """A backend that notes what it was called with."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._backend, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] = arguments, options
            return function(*arguments, **options)

        return call

    def again(self, name: str) -> Callable[[], Any]:
        """What calls the backend again as it was called last."""
        arguments, options = self.calls[name]
        function = getattr(self._backend, name)
        return lambda: function(*arguments, **options)


def backend_of(device: torch.device) -> Any:
    """The backend whose tensors stay on the device.

    Raises
    ------
    RuntimeError
        If it has none.
    """
    backend = selection.resident(device)
    if backend is None:
        raise RuntimeError(f"device: expected one that a backend works on, got {device}")
    return backend


@lru_cache(maxsize=512)
def _values(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def random_like(x: Tensor, seed: int) -> Tensor:
    """Values in [0, 1), the same on every device; kept, so that they need not be brought there again."""
    return _values(tuple(x.shape), x.dtype, x.device, seed)


def record(cases: Sequence[Case], **options: Any) -> Recorder:
    """Run the pipeline of some answers of one classifier; return what it called the backend with."""
    device = cases[0].hidden.device
    recorder = Recorder(backend_of(device))
    tokens = [AnswerTokens(case.hidden, case.classifier, case.token_ids, case.layout, None, None, "") for case in cases]
    settings = {"compat": None, "kernel_size": 3, "interference": True, "dtype": torch.float32, **options}
    device_answer.run(recorder, [case.hidden for case in cases], cases[0].classifier, tokens, **settings)
    return recorder


def started_stream(case: Case, tokens: int, **options: Any) -> tam_fast.ActivationMapStream:
    """A stream that has seen the prompt and some tokens."""
    start = case.answer_start
    maps = tam_fast.ActivationMapStream(case.classifier, case.layout, case.token_ids[:start], **options)
    maps.extend(case.hidden[:start])
    for t in range(tokens):
        maps.append(int(case.token_ids[start + t]))
        maps.extend(case.hidden[start + t : start + t + 1])
    return maps


def _filter(device: torch.device, shapes: Sequence[Sequence[int]], dtype: torch.dtype, kernel_size: int) -> Call:
    maps = [torch.empty(tuple(shape), dtype=dtype, device=device) for shape in shapes]

    def renew(seed: int) -> None:
        for index, x in enumerate(maps):
            x.copy_(random_like(x, seed + index))

    renew(0)
    names = "+".join("x".join(map(str, shape)) for shape in shapes[:3])
    name = (
        f"rank_gaussian_filter {names}{'...' * (len(shapes) > 3)} {str(dtype).removeprefix('torch.')} k={kernel_size}"
    )
    return Call(name, lambda: tam_fast.rank_gaussian_filter(maps, kernel_size), renew)


def _scores(device: torch.device, positions: int, channels: int, rows: int, dtype: torch.dtype) -> Call:
    hidden = torch.empty((positions, channels), dtype=dtype, device=device)
    classifier = torch.empty((rows, channels), dtype=dtype, device=device)
    ids = torch.arange(0, rows, 2, device=device)

    def renew(seed: int) -> None:
        hidden.copy_(random_like(hidden, seed) - 0.4)
        classifier.copy_(random_like(classifier, seed + 1) - 0.4)

    renew(0)
    backend = selection.serving(device)
    name = f"token_scores S={positions} C={channels} {str(dtype).removeprefix('torch.')}"
    return Call(name, lambda: backend.token_scores([hidden], classifier, [ids]), renew)


def _causal(device: torch.device, targets: int, contexts: int, positions: int) -> Call:
    shapes = (targets, positions), (contexts, positions), (targets, contexts)
    inputs = [torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes]

    def renew(seed: int) -> None:
        for index, x in enumerate(inputs):
            x.copy_(random_like(x, seed + index))
        inputs[2].tril_(contexts - targets)

    renew(0)
    name = f"estimated_causal_inference T={targets} K={contexts} N={positions}"
    return Call(name, lambda: list(tam_fast.estimated_causal_inference(*inputs)), renew)


def _scale(device: torch.device, targets: int, positions: int, dtype: torch.dtype) -> Call:
    inputs = [torch.empty((targets, positions), dtype=dtype, device=device) for _ in range(2)]

    def renew(seed: int) -> None:
        for index, x in enumerate(inputs):
            x.copy_(random_like(x, seed + index))

    renew(0)
    name = f"least_squares_scale T={targets} N={positions} {str(dtype).removeprefix('torch.')}"
    return Call(name, lambda: [tam_fast.least_squares_scale(*inputs)], renew)


def _finish(device: torch.device, targets: int, contexts: int, sizes: Sizes, kernel_size: int) -> Call:
    positions = sum(height * width for height, width in sizes)
    scores = torch.empty((targets + contexts, positions), dtype=torch.float32, device=device)
    relevance = torch.empty((targets, contexts), dtype=torch.float32, device=device)
    text = torch.empty((targets, contexts), dtype=torch.float32, device=device)
    rows = torch.arange(contexts, contexts + targets, device=device)
    lengths = torch.arange(targets, device=device).clamp(max=contexts)

    def renew(seed: int) -> None:
        for index, x in enumerate((scores, relevance, text)):
            x.copy_(random_like(x, seed + index))

    renew(0)
    flat = [side for size in sizes for side in size]
    context = [torch.arange(contexts, device=device)]

    def run() -> list[Tensor]:
        found = torch.ops.tam_fast.finish_maps.default(
            [scores], [rows], context, [relevance], [text], [lengths], flat, [len(sizes)], kernel_size
        )
        return [x for part in found for x in part]

    return Call(f"finish_maps T={targets} K={contexts} {sizes} k={kernel_size}", run, renew)


def _recorded(cases: Sequence[Case], name: str, **options: Any) -> list[Call]:
    """The two operators of the pipeline of whole answers."""
    recorder = record(cases, **options)
    scores, answers = recorder.again("answer_scores"), recorder.calls["answer_maps"][0][0]
    flag = recorder.calls["answer_scores"][0][4]
    maps = recorder.again("answer_maps")

    def renew_states(seed: int) -> None:
        for index, case in enumerate(cases):
            case.hidden.copy_(random_like(case.hidden, seed + index) - 0.3)

    def renew_scores(seed: int) -> None:
        for index, answer in enumerate(answers):
            answer.scores.copy_(random_like(answer.scores, seed + index))

    def finish() -> list[Tensor]:
        maps()
        return [x for answer in answers for x in (answer.maps, answer.relevance, answer.scale, answer.flat)]

    return [
        Call(f"answer_scores {name}", lambda: [*scores(), flag], renew_states),
        Call(f"answer_maps {name}", finish, renew_scores),
    ]


def _step(case: Case, tokens: int, kernel_size: int = 3) -> Call:
    step = started_stream(case, tokens, kernel_size=kernel_size)._context._step
    backend = backend_of(case.hidden.device)

    def renew(seed: int) -> None:
        step.prompt.copy_(random_like(step.prompt, seed) - 0.3)
        step.states.copy_(random_like(step.states, seed + 1) - 0.3)

    def run() -> list[Tensor]:
        backend.step_answer(step, kernel_size)
        return [step.maps, step.relevance, step.scale, step.flat, step.scores, step.flag]

    return Call(f"step_answer {case.sizes}, token {tokens} k={kernel_size}", run, renew)


def some_cases(device: torch.device, count: int, dtype: torch.dtype = torch.float32) -> list[Case]:
    """Ragged answers of one classifier: grids, prompts and lengths differ."""
    grids: list[Sizes] = [[(6, 7)], [(2, 2), (5, 3)], [(8, 9)], [(1, 1)], [(12, 4)]]
    cases = []
    for index in range(count):
        sizes = grids[index % len(grids)]
        case = Case(sizes, n_p=index % 4, n_t=1 + index % 5, c=32, v=12, seed=index, dtype=dtype).to(device)
        case.classifier = cases[0].classifier if cases else case.classifier
        cases.append(case)
    return cases


def operators(device: torch.device) -> list[Call]:
    """Operators that any device has, by dtype, size of window and raggedness."""
    f32, f16, bf16, f64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
    return [
        *(_filter(device, [(5, 36, 36)], dtype, k) for dtype in (f32, f16, bf16, f64) for k in (1, 3, 5, 7, 9, 15)),
        _filter(device, [(2, 33, 31)], f32, 3),
        _filter(device, [(3, 1, 1), (2, 2, 17), (1, 65, 40)], bf16, 3),
        _filter(device, [(1, 3 + index % 7, 5) for index in range(75)], f32, 3),
        *(_scores(device, 150, channels, 90, dtype) for dtype in (f32, f16, bf16, f64) for channels in (64, 67)),
        _causal(device, 3, 5, 21),
        _causal(device, 70, 133, 200),
        _scale(device, 5, 1000, f32),
        _scale(device, 5, 1000, bf16),
        _finish(device, 5, 0, [(9, 10)], 3),
        _finish(device, 5, 9, [(9, 10), (3, 4)], 5),
        _finish(device, 2, 3, [(256, 256)], 3),  # a map that no shared memory holds
        _finish(device, 2, 3, [(16, 16)], 9),
    ]


def small(device: torch.device) -> list[Call]:
    """Each operator once: sizes at which an emulated device is quick."""
    return [
        _filter(device, [(3, 9, 10)], torch.float32, 3),
        _scores(device, 20, 32, 6, torch.float32),
        _causal(device, 3, 5, 21),
        _scale(device, 3, 21, torch.float32),
        _finish(device, 3, 4, [(5, 6)], 3),
        *_recorded(some_cases(device, 2), "2 answers"),
        _step(Case([(5, 6)], n_t=4).to(device), 3),
    ]


def every(device: torch.device) -> list[Call]:
    """Every kernel: the operators, and those of the pipeline and of streams."""
    bf16 = torch.bfloat16
    return [
        *operators(device),
        *_recorded(some_cases(device, 1), "1 answer"),
        *_recorded(some_cases(device, 5, bf16), "5 answers, bfloat16"),
        *_recorded(some_cases(device, 70), "70 answers, uint8", dtype=torch.uint8),
        *_recorded([Case([(17, 16)], n_p=40, n_t=70, v=50).to(device)], "70 tokens", kernel_size=7),
        _step(Case([(12, 13)], n_t=9).to(device), 8),
        _step(Case([(2, 2), (5, 3)], n_t=9, dtype=bf16, interleaved=True).to(device), 5, kernel_size=5),
    ]
