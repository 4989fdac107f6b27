"""The operators on Triton kernels: for GPUs that the CUDA kernels were not built for, and under Triton's interpreter.

Everything is launched on the current stream of the tensors' device and not waited for; results are on that device.
Launches can be captured in a CUDA graph once their kernels are compiled, that is, after a first call. Kernels compile
at first use for each number format and window, never for other sizes. With ``TRITON_INTERPRET=1`` in the environment
before this module is imported, the kernels are interpreted on CPU tensors, which is slow and serves tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        f"tam_fast.backends.triton: needs Triton, which cannot be imported ({error}): pip install 'tam-fast[gpu]'"
    ) from error

from tam_fast.backends import (
    triton_finish_maps,
    triton_interference,
    triton_rank_gaussian_filter,
    triton_token_scores,
    tuning,
)
from tam_fast.backends._device import DeviceAnswer, DeviceStep, float_rows, grid_table, indices
from tam_fast.backends.tuning import Configuration, Tuner

__all__ = [
    "INTERPRETED",
    "ContextStates",
    "answer_maps",
    "answer_scores",
    "estimated_causal_inference",
    "finish_maps",
    "info",
    "least_squares_scale",
    "rank_gaussian_filter",
    "step_answer",
    "token_scores",
    "tune",
    "unavailable",
]

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether the kernels were made for Triton's interpreter, and so for CPU tensors."""

_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
    torch.uint8: tl.uint8,
}
_NETWORKS = (1, 3, 5, 7)  # windows that a network sorts; 1 needs none
_FEW = 4  # targets that are worked on one by one
_SEPARATE = 1 << 14  # positions from which on a map is filtered by more than one program


@dataclass
class ContextStates:
    """Where context maps come from that no score matrix holds: A_k = [hidden[positions] classifier[classes[k]]]+."""

    hidden: Tensor  # (S, C)
    positions: Tensor  # (N,) int64
    classifier: Tensor  # (V, C)
    classes: Tensor  # (K,) int64
    flag: Tensor | None = None  # (1,) int32, becomes 1 if such a map holds NaN or Inf


# ------------------------------------------------------------------------------------------------------------ launching


def unavailable(device: torch.device | None = None) -> str | None:
    """Say why Triton cannot serve tensors of a device (by default: of any), or None if it can."""
    if INTERPRETED:
        if device is None or device.type == "cpu":
            return None
        return f"TRITON_INTERPRET=1 interprets kernels on CPU tensors, got tensors on {device}"
    if device is not None and device.type != "cuda":
        return f"expected CUDA tensors (or TRITON_INTERPRET=1 set before the start), got tensors on {device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device, and TRITON_INTERPRET=1 is not set"
    return None


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device current for launches, or refuse it."""
    why = unavailable(device)
    if why is not None:
        raise RuntimeError(f"triton: {why}")
    if INTERPRETED:
        return np.errstate(all="ignore")
    if device.index is None or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


_tuners: dict[str, Tuner] = {}


def _tuner() -> Tuner:
    """Return the configurations for the current device."""
    if INTERPRETED:
        name = "interpreter"
    else:
        major, minor = torch.cuda.get_device_capability()
        name = f"sm_{major}{minor}"
        if torch.version.hip is not None:
            name = str(torch.cuda.get_device_properties().gcnArchName).partition(":")[0]
    return _tuners.setdefault(name, Tuner(name))


def _capturing() -> bool:
    return not INTERPRETED and bool(torch.cuda.is_current_stream_capturing())


_tuning = False  # whether tune() is running


def _measure(launch: Callable[[Configuration], Any]) -> Callable[[Configuration], float | None]:
    def measure(configuration: Configuration) -> float | None:
        try:
            compiled = launch(configuration)
            if getattr(compiled, "n_spills", 0):
                return None
            return float(triton.testing.do_bench(lambda: launch(configuration), warmup=5, rep=20, return_mode="median"))
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
            return None

    return measure


def _configured(
    kernel: str, number_format: str, sizes: Sequence[int], launch: Callable[[Configuration], Any]
) -> Configuration:
    """Find a launch's configuration; where that was asked for and none is known, measure some first."""
    tuner = _tuner()
    configuration, measured = tuner.find(kernel, number_format, sizes)
    if not measured and (_tuning or tuning.is_requested()) and not INTERPRETED and not _capturing():
        configuration = tuner.tune(kernel, number_format, sizes, _measure(launch))
    return configuration


def _launch(kernel: Any, programs: int, configuration: Configuration, *arguments: int, **constants: Any) -> Any:
    return kernel[(programs,)](
        *arguments,
        **constants,
        **configuration.blocks,
        num_warps=configuration.warps,
        num_stages=configuration.stages,
        enable_fp_fusion=True,
    )


def _launch_items(
    kernel: Any,
    programs: Callable[[int, Configuration], int],
    items: Sequence[Sequence[int]],
    device: torch.device,
    configuration: Configuration,
    *common: int,
    **constants: Any,
) -> Any:
    """Launch a kernel once for all items; the i-th is worked on by programs(i, configuration) programs."""
    counts = [programs(i, configuration) for i in range(len(items))]
    some = [(count, item) for count, item in zip(counts, items, strict=True) if count]
    if len(some) > 1 and not _capturing():
        first, rows = 0, []
        for count, item in some:
            rows.append((first, *item))
            first += count
        table = torch.tensor(rows, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        table = table.to(device, non_blocking=True)
        return _launch(
            kernel, first, configuration, table.data_ptr(), len(some), *common, *(0,) * len(items[0]), **constants
        )
    compiled = None
    for count, item in some:
        # A graph would copy a table from memory that has long been used for something else.
        compiled = _launch(kernel, count, configuration, 0, 1, *common, *item, **constants)
    return compiled


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


# ---------------------------------------------------------------------------------------------------------- arguments


def _grids(sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[int, int, int, int]:
    """Count, height and width of grids; or count and a table."""
    if not sizes:
        return 0, 1, 1, 0
    height, width = sizes[0]
    if all(tuple(size) == (height, width) for size in sizes):
        return len(sizes), height, width, 0
    return len(sizes), 1, 1, grid_table(sizes, device).data_ptr()


def _operands(hidden: Tensor, classifier: Tensor) -> tuple[Tensor, Any, str, str]:
    """States as they are multiplied, the type that both sides are brought to, input precision, and number format."""
    if hidden.dtype != classifier.dtype or hidden.dtype == torch.float64:
        return hidden.to(torch.float32), tl.float32, "ieee", "float32"
    if hidden.dtype == torch.float32:
        precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        return hidden, tl.float32, precision, "float32" if precision == "ieee" else "tf32"
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    factor = tl.float32 if INTERPRETED and hidden.dtype == torch.bfloat16 else _TYPES[hidden.dtype]
    return hidden, factor, "ieee", str(hidden.dtype).removeprefix("torch.")


def _aligned(*operands: Tensor) -> bool:
    """Whether rows can be read in 16 bytes at a time."""
    return all(
        x.data_ptr() % 16 == 0 and x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.shape[1] % 16 == 0 for x in operands
    )


# ----------------------------------------------------------------------------------------------------------- operators


def rank_gaussian_filter(maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False) -> list[Tensor]:
    """Rank Gaussian filter of every (..., H, W) tensor; contiguous results of the same dtype. One launch a dtype."""
    outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps]
    groups: dict[torch.dtype, list[tuple[int, ...]]] = {}
    kept = []  # alive until the launch
    for x, y in zip(maps, outputs, strict=True):
        stack = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
        kept.append(stack)
        item = (stack.data_ptr(), y.data_ptr(), *stack.shape, *stack.stride(), stack.shape[1] * stack.shape[2])
        groups.setdefault(x.dtype, []).append(item)
    for dtype, items in groups.items():
        device = maps[0].device
        with _on(device):
            _filter(items, kernel_size, constant_window_nan, dtype, dtype, device)
    return outputs


def _filter(
    items: list[tuple[int, ...]],
    kernel_size: int,
    constant_nan: bool,
    read: torch.dtype,
    written: torch.dtype,
    device: torch.device,
) -> None:
    """Items: source, target, count, height, width, strides of map, row and column, and of the target's maps.

    What is written as uint8 is in [0, 1] or NaN.
    """
    number_format = str(read).removeprefix("torch.")
    pixels = sum(item[2] * item[3] * item[4] for item in items)
    if kernel_size in _NETWORKS and read != torch.float64:

        def programs(i: int, configuration: Configuration) -> int:
            count, height, width = items[i][2:5]
            return _tiles(count * _tiles(height, configuration.blocks["ROWS"]) * width, configuration.blocks["LANES"])

        def launch(configuration: Configuration) -> Any:
            return _launch_items(
                triton_rank_gaussian_filter.rank_gaussian_filter_kernel,
                programs,
                items,
                device,
                configuration,
                int(constant_nan),
                INPUT=_TYPES[read],
                OUTPUT=_TYPES[written],
                K=kernel_size,
                PLAIN=read == torch.float16 or written == torch.uint8,
            )

        name = f"rank_gaussian_filter.{kernel_size}"
    else:
        slots = max(1 << (kernel_size**2 - 1).bit_length(), 64)

        def programs(i: int, configuration: Configuration) -> int:
            count, height, width = items[i][2:5]
            return count * _tiles(height * width, configuration.blocks["PIXELS"])

        def launch(configuration: Configuration) -> Any:
            return _launch_items(
                triton_rank_gaussian_filter.rank_gaussian_filter_ranked_kernel,
                programs,
                items,
                device,
                configuration,
                int(constant_nan),
                kernel_size,
                INPUT=_TYPES[read],
                OUTPUT=_TYPES[written],
                WIDE=read == torch.float64,
                SLOTS=slots,
            )

        name = f"rank_gaussian_filter_ranked.{kernel_size}"
    if pixels:
        launch(_configured(name, number_format, (pixels, max(item[3] for item in items)), launch))


def token_scores(hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
    """relu(hidden @ classifier[ids].T).T of every answer: (S, C), (V, C), (T,) int64 -> (T, S) float32."""
    return _scores(hidden, classifier, token_ids, [None] * len(hidden), None)


def answer_scores(
    hidden: list[Tensor], classifier: Tensor, classes: list[Tensor], positions: list[Tensor], flag: Tensor
) -> list[Tensor]:
    """Score classes (U,) at positions (P,) of every answer: (U, P) float32. `flag` (1,) int32 tells of NaN and Inf.

    One launch for each dtype. A class or position that is out of range gives NaN.
    """
    return _scores(hidden, classifier, classes, list(positions), flag)


def _scores(
    hidden: list[Tensor],
    classifier: Tensor,
    classes: list[Tensor],
    positions: Sequence[Tensor | None],
    flag: Tensor | None,
) -> list[Tensor]:
    device = classifier.device
    outputs = []
    kept = []  # alive until the launch
    groups: dict[torch.dtype, list[tuple[Tensor, tuple[int, ...]]]] = {}
    for states, ids, where in zip(hidden, classes, positions, strict=True):
        states = _operands(states, classifier)[0]
        ids = indices(ids, device)
        where = None if where is None else indices(where, device)
        width = states.shape[0] if where is None else where.shape[0]
        scores = torch.empty((ids.shape[0], width), dtype=torch.float32, device=device)
        kept.append((states, ids, where))
        outputs.append(scores)
        item = (
            states.data_ptr(),
            states.shape[0],
            *states.stride(),
            0 if where is None else where.data_ptr(),
            width,
            ids.data_ptr(),
            ids.shape[0],
            scores.data_ptr(),
            width,
        )
        if scores.numel():
            groups.setdefault(states.dtype, []).append((states, item))
    for dtype, members in groups.items():
        _, factor, precision, number_format = _operands(members[0][0], classifier)
        aligned = _aligned(classifier, *(states for states, _ in members))
        items = [item for _, item in members]

        def programs(i: int, configuration: Configuration, items: list[tuple[int, ...]] = items) -> int:
            blocks = configuration.blocks
            return _tiles(items[i][7], blocks["BLOCK_U"]) * _tiles(items[i][5], blocks["BLOCK_P"])

        def launch(
            configuration: Configuration,
            items: list[tuple[int, ...]] = items,
            programs: Callable[[int, Configuration], int] = programs,
            constants: dict[str, Any] = {  # noqa: B006 (of this turn of the loop)
                "CLASSIFIER": _TYPES[classifier.dtype],
                "HIDDEN": _TYPES[dtype],
                "FACTOR": factor,
                "PRECISION": precision,
                "ALIGNED": aligned,
            },
        ) -> Any:
            return _launch_items(
                triton_token_scores.token_scores_kernel,
                programs,
                items,
                device,
                configuration,
                classifier.data_ptr(),
                *classifier.shape,
                *classifier.stride(),
                0 if flag is None else flag.data_ptr(),
                **constants,
            )

        number_format += "" if aligned else "-strided"
        sizes = max(item[7] for item in items), sum(item[5] for item in items), classifier.shape[1]
        with _on(device):
            launch(_configured("token_scores", number_format, sizes, launch))
    return outputs


def least_squares_scale(target: Tensor, interference: Tensor) -> Tensor:
    """<target, interference> / <interference, interference> over the last dimension: (..., N) each -> (...) float32."""
    scale = torch.empty(target.shape[:-1], dtype=torch.float32, device=target.device)
    if target.dtype != interference.dtype:
        common = torch.promote_types(torch.promote_types(target.dtype, interference.dtype), torch.float32)
        target, interference = target.to(common), interference.to(common)
    a, e = (x.reshape(scale.numel(), x.shape[-1]) for x in (target, interference))

    def launch(configuration: Configuration) -> Any:
        return _launch(
            triton_finish_maps.least_squares_scale_kernel,
            a.shape[0],
            configuration,
            a.data_ptr(),
            *a.stride(),
            e.data_ptr(),
            *e.stride(),
            a.shape[1],
            scale.data_ptr(),
            ELEMENT=_TYPES[a.dtype],
        )

    if scale.numel():
        with _on(a.device):
            number_format = str(a.dtype).removeprefix("torch.")
            launch(_configured("least_squares_scale", number_format, tuple(a.shape), launch))
    return scale


# ----------------------------------------------------------------------------------------- from scores to finished maps


@dataclass
class _Rows:
    """Some rows of a float32 matrix of unit column stride: those of an int64 index, or in order."""

    matrix: Tensor
    index: Tensor | None = None
    column: int = 0  # where they begin

    def arguments(self) -> tuple[int, int, int]:
        """Address, row stride, and address of the index."""
        address = self.matrix.data_ptr() + 4 * self.column
        return address, self.matrix.stride(0), 0 if self.index is None else self.index.data_ptr()


@dataclass
class _Item:
    """One answer as the kernels of maps take it; they read all of its tensors by address."""

    activation: _Rows  # (T, N)
    context: _Rows | None  # (K, N); None: made from states
    relevance: _Rows  # (T, K)
    names: tuple[Tensor, Tensor, Tensor] | None  # context_names (K,), target_names (T,), lengths (T,); None: all count
    text: _Rows | None  # (T, L)
    text_size: int
    text_lengths: Tensor | None  # (T,); None: all
    shape: tuple[int, int, int]  # T, K, N
    sizes: Sequence[tuple[int, int]]
    maps: Tensor  # (T, N) float32 or uint8
    text_out: Tensor | None  # (T, L)
    scale: Tensor  # (T,)
    flat: Tensor | None  # (T,)
    states: ContextStates | None = None


def _targets_of_interference(item: _Item) -> tuple[int, ...]:
    relevance, names = item.relevance.arguments(), item.names
    by_name = (0, 0, 0) if names is None else tuple(x.data_ptr() for x in names)
    return (*relevance, *by_name, *item.shape)


def _run(items: Sequence[_Item], kernel_size: int, constant_nan: bool, *, causal: bool = False) -> None:
    """Interference and what follows, in two launches; in three where maps are large or windows wide."""
    items = [item for item in items if item.shape[0]]
    if not items:
        return
    device = items[0].maps.device
    with _on(device):
        jobs = [(item, _Work(item, device)) for item in items]
        read = [job for job in jobs if job[0].states is None]
        # Each launch is configured before the first one runs: measuring overwrites what they hand on.
        launches = [_interference(read, device)] if read else []
        launches += [_interference_from_states(*job) for job in jobs if job[0].states is not None]
        launches.append(_finish(jobs, device, kernel_size, constant_nan, causal))
        for launch in launches:
            launch()


class _Work:
    """Where the kernels hand an item on: interference (T, N), and the tiles' dot products, then the denominators."""

    def __init__(self, item: _Item, device: torch.device) -> None:
        targets, _, size = item.shape
        self.interference = torch.empty((targets, size), dtype=torch.float32, device=device)
        self.tiles = 1
        self._targets, self._device = targets, device
        self.dots = self.interference

    def split(self, positions: int) -> None:
        """Make room for the dot products of tiles of some positions each."""
        self.tiles = max(_tiles(self.interference.shape[1], positions), 1)
        self.dots = torch.empty(self._targets * (2 * self.tiles + 1), dtype=torch.float64, device=self._device)

    def arguments(self) -> tuple[int, int]:
        return self.interference.data_ptr(), self.dots.data_ptr()


_Job: TypeAlias = "tuple[_Item, _Work]"


def _interference(jobs: list[_Job], device: torch.device) -> Callable[[], Any]:
    few = max(item.shape[0] for item, _ in jobs) <= _FEW
    name = "interference_few" if few else "interference"
    kernel = getattr(triton_interference, f"{name}_kernel")

    def programs(i: int, configuration: Configuration) -> int:
        targets, _, size = jobs[i][0].shape
        rows = targets if few else _tiles(targets, configuration.blocks["BLOCK_T"])
        return rows * max(_tiles(size, configuration.blocks["BLOCK_N"]), 1)

    def launch(configuration: Configuration) -> Any:
        arguments = []
        for item, work in jobs:
            assert item.context is not None
            work.split(configuration.blocks["BLOCK_N"])
            arguments.append(
                (
                    *item.activation.arguments(),
                    *item.context.arguments(),
                    *_targets_of_interference(item),
                    work.tiles,
                    *work.arguments(),
                )
            )
        return _launch_items(kernel, programs, arguments, device, configuration)

    sizes = [max(item.shape[i] for item, _ in jobs) for i in range(3)]
    configuration = _configured(name, "float32", sizes, launch)
    return lambda: launch(configuration)


def _interference_from_states(item: _Item, work: _Work) -> Callable[[], Any]:
    states = item.states
    assert states is not None
    hidden, factor, precision, number_format = _operands(states.hidden, states.classifier)
    aligned = _aligned(states.classifier, hidden)
    targets = item.shape[0]

    def launch(configuration: Configuration) -> Any:
        work.split(configuration.blocks["BLOCK_N"])
        return _launch(
            triton_interference.interference_from_states_kernel,
            _tiles(targets, configuration.blocks["BLOCK_T"]) * work.tiles,
            configuration,
            *item.activation.arguments(),
            *_targets_of_interference(item),
            work.tiles,
            *work.arguments(),
            hidden.data_ptr(),
            hidden.shape[0],
            *hidden.stride(),
            states.positions.data_ptr(),
            states.classifier.data_ptr(),
            states.classifier.shape[0],
            *states.classifier.stride(),
            states.classes.data_ptr(),
            states.classifier.shape[1],
            0 if states.flag is None else states.flag.data_ptr(),
            CLASSIFIER=_TYPES[states.classifier.dtype],
            HIDDEN=_TYPES[hidden.dtype],
            FACTOR=factor,
            PRECISION=precision,
            ALIGNED=aligned,
        )

    number_format += "" if aligned else "-strided"
    sizes = (*item.shape, states.classifier.shape[1])
    configuration = _configured("interference_from_states", number_format, sizes, launch)
    return lambda: launch(configuration)


def _finish(
    jobs: list[_Job], device: torch.device, kernel_size: int, constant_nan: bool, causal: bool
) -> Callable[[], None]:
    largest = max(item.shape[2] for item, _ in jobs)
    separate = not causal and kernel_size > 1 and (kernel_size not in _NETWORKS or largest > _SEPARATE)
    window = 1 if separate or causal else kernel_size
    written = torch.float32 if separate else jobs[0][0].maps.dtype

    def launch(configuration: Configuration) -> Any:
        arguments = []
        for item, work in jobs:
            targets, _, size = item.shape
            target = work.interference if separate else item.maps
            arguments.append(
                (
                    *item.activation.arguments(),
                    *((0, 0, 0) if item.text is None else item.text.arguments()),
                    item.text_size,
                    0 if item.text_lengths is None else item.text_lengths.data_ptr(),
                    targets,
                    size,
                    work.tiles,
                    *_grids(() if causal else item.sizes, device),
                    *work.arguments(),
                    target.data_ptr(),
                    0 if item.text_out is None else item.text_out.data_ptr(),
                    item.scale.data_ptr(),
                    0 if item.flat is None else item.flat.data_ptr(),
                )
            )
        return _launch_items(
            triton_finish_maps.finish_maps_kernel,
            lambda i, _: jobs[i][0].shape[0],
            arguments,
            device,
            configuration,
            int(constant_nan),
            OUTPUT=_TYPES[written],
            CAUSAL=causal,
            K=window,
            BLOCK_TILES=64,
        )

    name = f"finish_maps.{0 if causal else window}"
    configuration = _configured(name, "float32", (largest, max(item.shape[0] for item, _ in jobs)), launch)

    def run() -> None:
        launch(configuration)
        if separate:
            parts = [part for item, work in jobs for part in _filter_items(item, work.interference)]
            _filter(parts, kernel_size, constant_nan, torch.float32, jobs[0][0].maps.dtype, device)

    return run


def _filter_items(item: _Item, normalised: Tensor) -> list[tuple[int, ...]]:
    """Describe the grids of (T, N) normalised maps for :func:`_filter`."""
    targets, _, size = item.shape
    parts: list[tuple[int, ...]] = []
    offset = 0
    for height, width in item.sizes:
        source = normalised.data_ptr() + 4 * offset
        target = item.maps.data_ptr() + item.maps.element_size() * offset
        parts.append((source, target, targets, height, width, size, width, 1, size))
        offset += height * width
    return parts


def estimated_causal_inference(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Causal maps (T, N) and scales (T,), float32, from (T, N), (K, N), (T, K) of every answer. Two launches."""
    items = []
    for given in zip(activation, context, relevance, strict=True):
        a, c, r = (float_rows(x) for x in given)
        causal = torch.empty(a.shape, dtype=torch.float32, device=a.device)
        scale = torch.empty(a.shape[0], dtype=torch.float32, device=a.device)
        shape = a.shape[0], c.shape[0], a.shape[1]
        items.append(_Item(_Rows(a), _Rows(c), _Rows(r), None, None, 0, None, shape, (), causal, None, scale, None))
    _run(items, 1, False, causal=True)
    return [item.maps for item in items], [item.scale for item in items]


def finish_maps(
    scores: list[Tensor],
    activation_rows: list[Tensor],
    context_rows: list[Tensor] | None,
    relevance: list[Tensor],
    text_relevance: list[Tensor],
    text_length: list[Tensor],
    grids: list[list[tuple[int, int]]],
    kernel_size: int,
    *,
    constant_window_nan: bool = False,
    out: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Scores to finished maps; arguments and results as in ``tam_fast.backends.cpu.finish_maps``."""
    items, results = [], []
    for index, (given, weights, words) in enumerate(zip(scores, relevance, text_relevance, strict=True)):
        rows, r, text, device = float_rows(given), float_rows(weights), float_rows(words), given.device
        shape = r.shape[0], r.shape[1], rows.shape[1]
        places = (
            torch.empty((shape[0], shape[2]), dtype=torch.float32, device=device),
            torch.empty(text.shape, dtype=torch.float32, device=device),
            torch.empty(shape[0], dtype=torch.float32, device=device),
            torch.empty(shape[0], dtype=torch.bool, device=device),
        )
        results.append(places)
        items.append(
            _Item(
                _Rows(rows, indices(activation_rows[index], device)),
                _Rows(rows, None if context_rows is None else indices(context_rows[index], device)),
                _Rows(r),
                None,
                _Rows(text),
                text.shape[1],
                indices(text_length[index], device),
                shape,
                grids[index],
                *places,
            )
        )
    _run(items, kernel_size, constant_window_nan)
    for index, given_places in enumerate(out or ()):
        for place, found in zip(given_places, results[index], strict=True):
            place.copy_(found)
    return [o[0] for o in results], [o[1] for o in results], [o[2] for o in results], [o[3] for o in results]


def _answer(answer: DeviceAnswer, states: ContextStates | None) -> _Item:
    targets, contexts = answer.relevance.shape
    positions = answer.maps.shape[1]
    relevance = _Rows(answer.scores, answer.target_rows, positions)
    context = _Rows(answer.scores, answer.context_rows)
    return _Item(
        activation=_Rows(answer.scores, answer.target_rows),
        context=context if states is None else None,
        relevance=relevance,
        names=(answer.context_names, answer.target_names, answer.lengths),
        text=relevance,
        text_size=contexts,
        text_lengths=answer.text_lengths,
        shape=(targets, contexts, positions),
        sizes=answer.sizes,
        maps=answer.maps,
        text_out=answer.relevance,
        scale=answer.scale,
        flat=answer.flat,
        states=states,
    )


def answer_maps(
    answers: list[DeviceAnswer],
    kernel_size: int,
    *,
    constant_window_nan: bool = False,
    states: Sequence[ContextStates | None] | None = None,
) -> None:
    """Finish the maps of some answers from their scores; results go to each answer's last four tensors.

    Two launches for all of them; a third one filters where windows are wider than 7 or maps larger than 16,384.

    Parameters
    ----------
    states : sequence of ContextStates or None, optional
        For an answer with states, context maps are made inside the kernel and never written: its scores need rows for
        its targets only, and ``context_rows`` may be empty. Where ``context_rows`` is given too, it is cheaper to read
        the maps, and they are read. One launch more for each such answer.
    """
    items = []
    for index, answer in enumerate(answers):
        given = None if states is None else states[index]
        made = given is not None and answer.context_rows.numel() == 0 and answer.relevance.shape[1] > 0
        items.append(_answer(answer, given if made else None))
    for dtype in (torch.float32, torch.uint8):
        _run([item for item in items if item.maps.dtype == dtype], kernel_size, constant_window_nan)


def step_answer(step: DeviceStep, kernel_size: int) -> None:
    """Score one more token of a stream and finish its map, in three launches; see ``DeviceStep``."""
    device = step.scores.device
    positions = step.positions.shape[0]
    aligned = _aligned(step.prompt, step.states, step.classifier)

    def launch(configuration: Configuration) -> Any:
        block = configuration.blocks["BLOCK_P"]
        return _launch(
            triton_token_scores.step_scores_kernel,
            max(_tiles(positions, block) + _tiles(step.states.shape[0], block), 1),
            configuration,
            step.prompt.data_ptr(),
            step.prompt.shape[0],
            step.prompt.stride(0),
            step.positions.data_ptr(),
            positions,
            step.n_p,
            step.states.data_ptr(),
            step.states.shape[0],
            step.states.stride(0),
            step.classifier.data_ptr(),
            *step.classifier.shape,
            *step.classifier.stride(),
            step.scores.data_ptr(),
            step.scores.shape[0],
            step.scores.stride(0),
            step.state.data_ptr(),
            step.context_rows.data_ptr(),
            step.context_names.data_ptr(),
            step.context_rows.shape[0],
            step.target.data_ptr(),
            step.flag.data_ptr(),
            STATES=_TYPES[step.prompt.dtype],
            CLASSIFIER=_TYPES[step.classifier.dtype],
            ALIGNED=aligned,
        )

    number_format = str(step.prompt.dtype).removeprefix("torch.") + ("" if aligned else "-strided")
    with _on(device):
        launch(_configured("step_scores", number_format, (positions, step.prompt.shape[1]), launch))
    answer = step.as_answer()
    answer_maps([answer], kernel_size)


# -------------------------------------------------------------------------------------------------------- configuration


def tune(
    targets: int = 256,
    prompt: int = 256,
    grid: tuple[int, int] = (36, 36),
    channels: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
    kernel_size: int = 3,
    device: str | torch.device = "cuda",
) -> dict[str, Any]:
    """Measure configurations for answers of about some size, and keep the best ones in the user's cache.

    Parameters
    ----------
    targets, prompt, grid, channels, dtype, kernel_size
        Tokens of the answer and of the prompt's text, sides of the map, C, dtype of states and classifier, window.

    Returns
    -------
    dict
        The configurations in use, as in :func:`info`.

    Raises
    ------
    RuntimeError
        If the device cannot be served, or the kernels are interpreted.
    """
    global _tuning
    if INTERPRETED:
        raise RuntimeError("tune: interpreted kernels have no configurations worth measuring (TRITON_INTERPRET=1)")
    place = torch.device(device)
    size, known = grid[0] * grid[1], prompt + targets - 1
    with _on(place):
        generator = torch.Generator(place).manual_seed(0)
        hidden = torch.randn(size + known + 1, channels, generator=generator, device=place).to(dtype)
        classifier = torch.randn(prompt + targets, channels, generator=generator, device=place).to(dtype)
        every = torch.arange(prompt + targets, device=place)
        lengths = prompt + torch.arange(targets, device=place)
        flag = torch.zeros(1, dtype=torch.int32, device=place)
        _tuning = True
        try:
            scores = answer_scores([hidden], classifier, [every], [torch.arange(size + known, device=place)], flag)[0]
            for count in (targets, 1):
                rows = every[prompt : prompt + count]
                places = (
                    torch.empty((count, size), device=place),
                    torch.empty((count, known), device=place),
                    torch.empty(count, device=place),
                    torch.empty(count, dtype=torch.bool, device=place),
                )
                some = lengths[:count]
                answer_maps(
                    [DeviceAnswer(scores, every[:known], every[:known], rows, rows, some, some, [grid], *places)],
                    kernel_size,
                )
            rank_gaussian_filter([scores[:, :size].reshape(-1, *grid)], kernel_size)
            n_p = prompt
            step_answer(
                DeviceStep(
                    prompt=hidden[: size + prompt],
                    positions=torch.arange(size + n_p, device=place),
                    states=hidden[size + prompt - 1 :],
                    classifier=classifier,
                    scores=torch.zeros((prompt + targets, size + n_p + targets), device=place),
                    state=torch.tensor([0, 0, n_p + targets - 1, 1], device=place),
                    context_rows=torch.zeros(n_p + targets, dtype=torch.int64, device=place),
                    context_names=torch.zeros(n_p + targets, dtype=torch.int64, device=place),
                    target=torch.zeros(3, dtype=torch.int64, device=place),
                    sizes=[grid],
                    n_p=n_p,
                    flag=flag,
                    maps=torch.empty((1, size), device=place),
                    relevance=torch.empty((1, n_p + targets), device=place),
                    scale=torch.empty(1, device=place),
                    flat=torch.empty(1, dtype=torch.bool, device=place),
                ),
                kernel_size,
            )
        finally:
            _tuning = False
        return _tuner().info()


def info() -> dict[str, Any]:
    """Tell whether Triton can serve here, why not, and which configurations are in use and where they came from."""
    why = unavailable()
    return {
        "version": str(triton.__version__),
        "available": why is None,
        "why": why or ("TRITON_INTERPRET=1" if INTERPRETED else "CUDA device found"),
        "interpreted": INTERPRETED,
        "cache": str(tuning.cache_folder()),
        "autotune": tuning.is_requested(),
        "configurations": {name: tuner.info() for name, tuner in _tuners.items()},
    }
