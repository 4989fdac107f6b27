"""The tables: cases, peers and checks. Results are checked against the CPU's maps, and those by the tests' oracle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tolerances
import torch
from answers import Case as Answer
from torch import Tensor

import tam_fast
from bench.gpu import calls, peers
from bench.gpu.clock import Clock
from bench.gpu.measure import Case, Peer, Way, interleave
from bench.measure import WrongResultError
from bench.records import Record, record, single
from tam_fast.backends.contracts import DeviceAnswer

F32, BF16 = torch.float32, torch.bfloat16
# What a plain float32 way of doing it may be off by, of the maximum; and maps from states of few bits, whose long
# products tensor cores round in their own way. What tam_fast is off by stands in the table.
PEER = 1e-5


def kind(dtype: torch.dtype) -> str:
    """float32."""
    return str(dtype).removeprefix("torch.")


def times(shape: Sequence[int]) -> str:
    """128x36x36."""
    return "x".join(map(str, shape))


@dataclass
class Run:
    """What a table is measured with.

    Attributes
    ----------
    clock : Clock
    backends : sequence of str
        Of tam_fast, those that can be used here.
    rehearsal : bool
        Tiny sizes and few samples, on any device.
    deadline : float
        Of ``time.monotonic()``: cases that would begin after it are left out.
    """

    clock: Clock
    backends: Sequence[str]
    rehearsal: bool = False
    deadline: float = math.inf

    def __post_init__(self) -> None:
        self.device = self.clock.device
        self.records: list[Record] = []
        self.failures: list[str] = []
        self.left_out: list[str] = []
        self.bandwidth = 0.0  # bytes a second of a copy larger than any cache

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes that cases are made of; Triton's interpreter has no bfloat16."""
        return (F32,) if self.rehearsal and "triton" in self.backends else (BF16, F32)

    def late(self, name: str) -> bool:
        """Whether there is no time left for a case; says so."""
        if time.monotonic() < self.deadline:
            return False
        self.failures.append(f"{name}: left out, there was no time left")
        print(self.failures[-1], flush=True)
        return True

    def measure(self, name: str, given: Sequence[Peer], *, budget: float = 0.4) -> Case:
        """Measure a case and keep its records, in us; work other than 1 is in bytes."""
        began = time.monotonic()
        options = {"budget": 0.0, "min_samples": 1, "max_rounds": 2} if self.rehearsal else {"budget": budget}
        case = interleave(name, given, self.clock, **options)
        moved = {peer.name: peer.work for peer in given if peer.work != 1}
        for timing in case.timings:
            if timing.name in moved:
                rate = moved[timing.name] / timing.seconds.p50
                share = f", {100 * rate / self.bandwidth:.0f} % of the large copy" if self.bandwidth else ""
                timing = replace(timing, note=f"{rate / 1e9:,.0f} GB/s{share}; {timing.note}")
            self.records.append(record(name, timing, "us", 1))
        for peer, failure in case.failures.items():
            # What another library cannot do here is no failure of ours.
            place = self.failures if peer.startswith("tam_fast") else self.left_out
            place.append(f"{name}: {peer}: {failure}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        return case

    @contextmanager
    def failing(self, name: str) -> Any:
        """Keep a failure to prepare a case from the cases after it."""
        try:
            yield
        except Exception as error:  # whatever it is, it is this case's result
            self.failures.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0])
            print(self.failures[-1], flush=True)

    def rand(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        """Random values in [0, 1)."""
        return torch.rand(shape, device=self.device).to(dtype)


# Checks.


def close(expected: Tensor, tolerance: float, what: str = "maps") -> Callable[[Any], str]:
    """Check against the CPU's result; what remains is a remark."""
    largest = float(expected.abs().max()) or 1.0

    def check(got: Any) -> str:
        got = got[0] if isinstance(got, (list, tuple)) else got
        got = got.maps if isinstance(got, tam_fast.TokenActivationMaps) else got
        if got.shape != expected.shape:
            raise WrongResultError(f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
        error = float((got.float() - expected.to(got.device).float()).abs().nan_to_num(torch.inf).max())
        if not error <= tolerance * largest:
            raise WrongResultError(
                f"{what}: expected at most {tolerance:g} of the maximum off, got {error / largest:g}"
            )
        return f"off by {error / largest:.1e} of the maximum"

    return check


def close_levels(expected: Tensor) -> Callable[[Any], str]:
    """Check uint8 maps: within 1, on few pixels."""

    def check(got: Any) -> str:
        got = got[0] if isinstance(got, (list, tuple)) else got
        difference = (got.int() - expected.to(got.device).int()).abs()
        most, share = int(difference.max()), float((difference > 0).double().mean())
        if most > 1 or share > max(1e-4, 1.5 / got.numel()):
            raise WrongResultError(f"uint8 maps: expected 1 level off on 1e-4 of pixels, got {most} on {share:g}")
        return f"1 level off on {share:.1e} of pixels" if most else "equal"

    return check


def equal(expected: Tensor, what: str) -> Callable[[Any], None]:
    """Check for the same values."""

    def check(got: Tensor) -> None:
        if not torch.equal(got, expected):
            raise WrongResultError(f"{what}: expected exactly the same values, got others")

    return check


def medians(expected: Tensor) -> Callable[[Any], None]:
    """Check medians for the same values, of windows that lie within the map: libraries pad in their own ways."""
    check = equal(expected[:, 1:-1, 1:-1], "medians")
    return lambda got: check(got[:, 1:-1, 1:-1])


# Filter.


def _copy(run: Run) -> None:
    """Device-to-device copies larger than any cache: the bandwidth that there is."""
    size = 1 << (16 if run.rehearsal else 30)
    inputs = [torch.randint(256, (size,), dtype=torch.uint8, device=run.device) for _ in range(2)]
    outputs = [torch.empty_like(x) for x in inputs]
    name = "device copy, 1 GiB read and written"
    case = run.measure(
        name,
        [
            Peer(
                "copy_", [partial(y.copy_, x) for x, y in zip(inputs, outputs, strict=True)], equal(inputs[0], "copy")
            ),
            Peer("clone", [x.clone for x in inputs], equal(inputs[0], "copy")),
        ],
    )
    rates = {timing.name: 2 * size / timing.seconds.p50 for timing in case.timings}
    run.records += [single(name, way, "GB/s", 1, rate / 1e9) for way, rate in rates.items()]
    run.bandwidth = max(rates.values(), default=0.0)


def _slots(run: Run, moved: int) -> int:
    """How many inputs make a cache cold: four times what it holds."""
    return 2 if run.rehearsal else min(max(math.ceil(4 * run.clock.cache / moved), 2), 32)


def fused(backend: Any, maps: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Normalise each map (B, H, W) and filter it: the pipeline's last step, of tokens without a context."""
    count, (height, width), device = maps.shape[0], maps.shape[1:], maps.device
    scores = maps.view(count, height * width)
    rows = torch.arange(count, device=device)
    none, zeros = torch.zeros_like(rows[:0]), torch.zeros_like(rows)
    names = zeros - 1

    def run() -> Tensor:
        answer = DeviceAnswer(
            scores=scores,
            context_rows=none,
            context_names=none,
            target_rows=rows,
            target_names=names,
            lengths=zeros,
            text_lengths=zeros,
            sizes=[(height, width)],
            maps=torch.empty(scores.shape, dtype=dtype, device=device),
            relevance=torch.empty((count, 0), device=device),
            scale=torch.empty(count, device=device),
            flat=torch.empty(count, dtype=torch.bool, device=device),
        )
        backend.answer_maps([answer], 3)
        return answer.maps.view(maps.shape)

    return run


def filter_table(run: Run) -> None:
    """Share of a copy's bandwidth, and peers; inputs rotate so that none is in the cache."""
    _copy(run)
    shapes = [(3, 6, 8), (1, 9, 16)] if run.rehearsal else [(4096, 36, 36), (64, 1024, 1024)]
    for shape in shapes:
        for dtype in reversed(run.dtypes):
            name = f"filter, {times(shape)}, {kind(dtype)}"
            if not run.late(name):
                with run.failing(name):
                    _filter_case(run, name, shape, dtype)
        name = f"normalise + filter, {times(shape)}, float32"
        if not run.late(name):
            with run.failing(name):
                _fused_case(run, name, shape)


def _filter_case(run: Run, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    moved = 2 * math.prod(shape) * dtype.itemsize
    inputs = [run.rand(*shape, dtype=dtype) for _ in range(_slots(run, moved))]
    targets = [torch.empty_like(x) for x in inputs]
    with tam_fast.use_backend("cpu"):
        wanted = tam_fast.rank_gaussian_filter(inputs[0].float().cpu()).to(run.device)
    ours = close(wanted, tolerances.DEVICE if dtype == F32 else tolerances.FILTER_BFLOAT16)
    theirs = close(wanted, PEER if dtype == F32 else tolerances.FILTER_BFLOAT16 + PEER)
    given = [
        Peer("copy", [partial(y.copy_, x) for x, y in zip(inputs, targets, strict=True)], equal(inputs[0], "copy"))
    ]
    given += [
        Peer(f"tam_fast, {backend}", peers.each(tam_fast.rank_gaussian_filter, inputs), ours, backend=backend)
        for backend in run.backends
    ]
    if not run.rehearsal:
        given.append(Peer("torch.compile, sorting network", peers.each(peers.compiled(peers.network), inputs), theirs))
        if dtype == F32:
            given.append(
                Peer(
                    "torch.compile, stack + sort", peers.each(peers.compiled(peers.stack_and_sort), inputs[:2]), theirs
                )
            )
    given.append(Peer("torch, unfold + sort", peers.each(peers.unfold_and_sort, inputs[:2]), theirs))
    if dtype == F32:
        middle = medians(peers.median(inputs[0]))
        if kornia := peers.kornia_median():
            given.append(Peer("kornia median_blur (median only)", peers.each(kornia, inputs[:2]), middle))
        cupy = peers.cupy_median() if run.device.type == "cuda" else None
        if cupy:
            given.append(
                Peer("cupyx median_filter (median only)", peers.each(cupy, inputs[:2]), middle, way=Way.QUEUED)
            )
    run.measure(name, [replace(peer, work=float(moved)) for peer in given])


def _fused_case(run: Run, name: str, shape: tuple[int, ...]) -> None:
    pixels = math.prod(shape)
    moved = 8 * pixels
    inputs = [run.rand(*shape) * 37 - 3 for _ in range(_slots(run, moved))]
    targets = [torch.empty_like(x) for x in inputs]
    first = inputs[0].cpu()
    low, high = first.amin((1, 2), keepdim=True), first.amax((1, 2), keepdim=True)
    # Without a context the residual is the map cut off below.
    first, low, high = first.clamp(min=0), low.clamp(min=0), high.clamp(min=0)
    with tam_fast.use_backend("cpu"):
        wanted = tam_fast.rank_gaussian_filter((first - low) / (high - low))
    levels = (wanted * 255).floor().to(torch.uint8).to(run.device)
    wanted = wanted.to(run.device)
    given = [
        Peer(
            "copy",
            [partial(y.copy_, x) for x, y in zip(inputs, targets, strict=True)],
            equal(inputs[0], "copy"),
            work=moved,
        )
    ]
    for backend in run.backends:
        with tam_fast.use_backend(backend):
            module = calls.backend_of(run.device)
        runs = [fused(module, x, F32) for x in inputs]
        given.append(Peer(f"tam_fast, {backend}", runs, close(wanted, tolerances.DEVICE), work=moved, backend=backend))
        runs = [fused(module, x, torch.uint8) for x in inputs]
        given.append(
            Peer(f"tam_fast, {backend}, to uint8", runs, close_levels(levels), work=5 * pixels, backend=backend)
        )
    check = close(wanted, PEER)
    if not run.rehearsal:

        def both(x: Tensor) -> Tensor:
            return peers.network(peers.normalised(x.relu()))

        given.append(
            Peer("torch.compile, sorting network", peers.each(peers.compiled(both), inputs), check, work=moved)
        )
    given.append(
        Peer(
            "torch, unfold + sort",
            peers.each(lambda x: peers.unfold_and_sort(peers.normalised(x.relu())), inputs[:2]),
            check,
            work=moved,
        )
    )
    run.measure(name, given)


# Whole answers.


def answer(run: Run, tokens: int, channels: int, dtype: torch.dtype, *, side: int = 36, prompt: int = 30) -> Answer:
    """Random states and classifier, made on the device; nearly all tokens differ, which is the most work."""
    vocabulary = 500 if run.rehearsal else 32_768
    case = Answer([(side, side)], n_p=prompt, n_t=tokens, c=1, v=vocabulary, seed=tokens)
    generator = torch.Generator(run.device).manual_seed(channels)
    rows = case.hidden.shape[0]
    case.hidden = torch.randn((rows, channels), generator=generator, device=run.device).to(dtype)
    case.classifier = torch.randn((vocabulary, channels), generator=generator, device=run.device)
    case.classifier = case.classifier.mul_(channels**-0.5).to(dtype)
    return case


def on_cpu(case: Answer, **options: Any) -> tam_fast.TokenActivationMaps:
    """The CPU's maps, of the classifier's rows that occur."""
    rows, ids = case.token_ids.unique(return_inverse=True)
    classifier = case.classifier[rows.to(case.classifier.device)].cpu()
    with tam_fast.use_backend("cpu"):
        return tam_fast.activation_maps(case.hidden.cpu(), classifier, ids, case.layout, **options)


def within(dtype: torch.dtype) -> float:
    """What tam_fast's maps may be off by, from states of a dtype."""
    return tolerances.DEVICE if dtype == F32 else PEER


def answer_table(run: Run) -> None:
    """Scores beside a matrix product, maps from scores, and the whole from states, the host's work included."""
    tokens, side = (4, 6) if run.rehearsal else (256, 36)
    widths = (32,) if run.rehearsal else (1536, 2048, 4096)
    for dtype in run.dtypes:
        for channels in widths:
            name = f"{tokens} tokens, {side}x{side}, C = {channels:,}, {kind(dtype)}"
            if not run.late(name):
                with run.failing(name):
                    case = answer(run, tokens, channels, dtype, side=side, prompt=4 if run.rehearsal else 30)
                    expected = on_cpu(case)
                    if channels == widths[0] and dtype == run.dtypes[0]:
                        _from_scores(run, f"{tokens} tokens, {side}x{side}, from scores", case, expected)
                    _scores_case(run, f"scores of {name}", case)
                    _whole_case(run, f"all of {name}", case, expected)


def _from_scores(run: Run, name: str, case: Answer, expected: tam_fast.TokenActivationMaps) -> None:
    """Interference and fused step; the scores are in the cache, as the product leaves them."""
    given, found = [], None
    tolerance = within(case.hidden.dtype)
    levels = expected.uint8()
    for backend in run.backends:
        for dtype, check in ((F32, close(expected.maps, tolerance)), (torch.uint8, close_levels(levels))):
            with tam_fast.use_backend(backend):
                recorder = calls.record([case], dtype=dtype)
            found = recorder.calls["answer_maps"][0][0][0]
            launch = recorder.again("answer_maps")

            def work(launch: Any = launch, found: Any = found) -> Tensor:
                launch()
                return found.maps

            suffix = "" if dtype == F32 else ", uint8"
            for way, how in ((Way.REPLAY, "graph"), (Way.EAGER, "eager"), (Way.WALL, "eager, until it is done")):
                given.append(Peer(f"tam_fast, {backend}, {how}{suffix}", [work], check, way, backend=backend))
    if found is None:
        raise RuntimeError("backends: expected one that works on the device, got none")
    check = close(expected.maps, 10 * PEER)
    torch_maps = partial(peers.maps_of, found)
    given.append(Peer("torch, graph", [torch_maps], check, Way.REPLAY))
    given.append(Peer("torch, eager", [torch_maps], check, Way.EAGER))
    run.measure(name, given)


@contextmanager
def _precision(name: str) -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _at(precision: str, function: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with _precision(precision):
            return function()

    return call


def _scores_case(run: Run, name: str, case: Answer) -> None:
    """The product with gathered rows, states in the cache as the model leaves them."""
    dtype, given = case.hidden.dtype, []
    wanted: Tensor | None = None
    precisions = ("highest", "high") if dtype == F32 else ("highest",)
    for precision in precisions:
        suffix = ", TF32" if precision == "high" else ""
        # TF32 keeps 10 bits of each factor, of sums of about 1 whose largest is about 5.
        tolerance = 2e-3 if suffix else PEER
        for backend in run.backends:
            if suffix and backend == "cuda":
                continue  # it has no TF32
            with tam_fast.use_backend(backend):
                recorder = calls.record([case])
            (hidden, classifier, classes, positions, _), _ = recorder.calls["answer_scores"]
            if wanted is None:
                rows, states = classifier[classes[0]], hidden[0][positions[0]]
                wanted = (rows.double() @ states.double().T).relu().float()
            launch = _at(precision, recorder.again("answer_scores"))
            check = close(wanted, tolerance, "scores")
            given.append(Peer(f"tam_fast, {backend}{suffix}", [launch], check, Way.REPLAY, backend=backend))
        if wanted is None:
            raise RuntimeError("backends: expected one that works on the device, got none")
        check = close(wanted, tolerance, "scores")
        gathered = _at(precision, partial(peers.scores_of, hidden[0], classifier, classes[0], positions[0]))
        alone = _at(precision, partial(peers.product, rows, states))

        def cut(got: Tensor, check: Any = check) -> str:
            return check(got.relu())

        given.append(Peer(f"torch, gather + mm + relu{suffix}", [gathered], check, Way.REPLAY))
        given.append(Peer(f"torch.mm of gathered rows{suffix}", [alone], cut, Way.REPLAY))
    operations = 2 * wanted.numel() * case.hidden.shape[1]
    noted = [replace(peer, note=f"{operations / 1e9:.2f} GFLOP") for peer in given]
    run.measure(name, noted)


def _whole_case(run: Run, name: str, case: Answer, expected: tam_fast.TokenActivationMaps) -> None:
    """activation_maps until it returns, which it does when the maps are made; torch's way beside it."""
    whole = partial(tam_fast.activation_maps, case.hidden, case.classifier, case.token_ids, case.layout)
    check = close(expected.maps, within(case.hidden.dtype))
    given = [
        Peer(f"tam_fast.activation_maps, {backend}", [whole], check, Way.WALL, backend=backend)
        for backend in run.backends
    ]
    with tam_fast.use_backend(run.backends[0]):
        recorder = calls.record([case])
    (hidden, classifier, classes, positions, _), _ = recorder.calls["answer_scores"]
    found = recorder.calls["answer_maps"][0][0][0]

    def torch_whole() -> Tensor:
        scores = peers.scores_of(hidden[0], classifier, classes[0], positions[0])
        return peers.maps_of(replace(found, scores=scores))

    given.append(Peer("torch, indices given", [torch_whole], close(expected.maps, 10 * PEER), Way.WALL))
    run.measure(name, given)


# Streams.


def stream_table(run: Run) -> None:
    """One more token of an answer of 128, from states to the finished map."""
    side, tokens = (6, 4) if run.rehearsal else (36, 128)
    for channels in (32,) if run.rehearsal else (1536, 4096):
        name = f"one token after {tokens}, {side}x{side}, C = {channels:,}, {kind(run.dtypes[0])}"
        if not run.late(name):
            with run.failing(name):
                _stream_case(run, name, channels, side, tokens)


def _stream_case(run: Run, name: str, channels: int, side: int, tokens: int) -> None:
    case = answer(run, tokens + 1, channels, run.dtypes[0], side=side, prompt=4 if run.rehearsal else 30)
    # A token that was not there before is more work.
    seen = set(case.token_ids[:-1].tolist())
    case.token_ids[-1] = next(token for token in range(len(case.classifier)) if token not in seen)
    expected = on_cpu(case).maps[-1:]
    check, given = close(expected, PEER), []
    token = int(case.token_ids[-1])
    found: Any = None
    for backend in run.backends:
        with tam_fast.use_backend(backend):
            started = calls.started_stream(case, tokens)
            started.append(token)
            step, module = started._context._step, calls.backend_of(run.device)

        def work(module: Any = module, step: Any = step) -> Tensor:
            module.step_answer(step, 3)
            return step.maps

        for way, how in (
            (Way.REPLAY, "graph"),
            (Way.COLD, "graph, cold L2"),
            (Way.EAGER, "eager"),
        ):
            given.append(Peer(f"tam_fast, {backend}, {how}", [work], check, way, backend=backend))
        given.append(_appending(backend, case, tokens, expected))
        found = step
    length = found.n_p + tokens
    torch_step = partial(peers.step_of, found, length)
    loose = close(expected, 10 * PEER)
    given.append(Peer("torch, graph", [torch_step], loose, Way.REPLAY))
    given.append(Peer("torch, eager", [torch_step], loose, Way.EAGER))
    run.measure(name, given)


def _appending(backend: str, case: Answer, tokens: int, expected: Tensor) -> Peer:
    """``ActivationMapStream.append``, the host's work and the way of the result to the CPU included."""
    with tam_fast.use_backend(backend):
        started = calls.started_stream(case, tokens)
    context = started._context
    token = int(case.token_ids[-1])
    known, length = dict(context._row_of), context._length

    def append() -> Tensor:
        # Each time the same token is new.
        started._count, context._length, context._row_of = tokens, length, dict(known)
        return started.append(token).map[None]

    return Peer(
        f"tam_fast, {backend}, append() until the map is on the CPU",
        [append],
        close(expected, PEER),
        Way.WALL,
        backend=backend,
    )


# Causal inference.


def causal_table(run: Run) -> None:
    """estimated_causal_inference beside one product and the closed form."""
    for prompt, tokens, positions in ((4, 6, 64),) if run.rehearsal else ((150, 100, 576), (300, 256, 1296)):
        name = f"{prompt} prompt and {tokens} answer tokens, {positions:,} positions"
        if not run.late(name):
            with run.failing(name):
                _causal_case(run, name, prompt, tokens, positions)


def _causal_case(run: Run, name: str, prompt: int, tokens: int, positions: int) -> None:
    contexts = prompt + tokens - 1
    inputs = run.rand(tokens, positions), run.rand(contexts, positions), run.rand(tokens, contexts).tril_(prompt - 1)
    with tam_fast.use_backend("cpu"):
        wanted, _ = tam_fast.estimated_causal_inference(*(x.cpu() for x in inputs))
    ours, theirs, given = close(wanted, tolerances.DEVICE, "causal maps"), close(wanted, PEER, "causal maps"), []
    for backend in run.backends:
        for way, how in ((Way.REPLAY, "graph"), (Way.EAGER, "eager")):
            call = partial(tam_fast.estimated_causal_inference, *inputs)
            given.append(Peer(f"tam_fast, {backend}, {how}", [call], ours, way, backend=backend))
    for way, how in ((Way.REPLAY, "graph"), (Way.EAGER, "eager")):
        given.append(Peer(f"torch, {how}", [partial(peers.causal, *inputs)], theirs, way))
    if not run.rehearsal:
        call = partial(peers.compiled(peers.causal), *inputs)
        given.append(Peer("torch.compile, graph", [call], theirs, Way.REPLAY))
    run.measure(name, given)


MEASURE: dict[str, Callable[[Run], None]] = {
    "filter": filter_table,
    "answer": answer_table,
    "stream": stream_table,
    "causal": causal_table,
}
