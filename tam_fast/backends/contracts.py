"""What a backend is, and what is handed to one: the contracts between the operators, the maps and the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["OPERATORS", "Backend", "DeviceAnswer", "DeviceBackend", "DeviceStep", "HostBackend", "StepBuffers"]

OPERATORS = (
    "rank_gaussian_filter",
    "token_scores",
    "least_squares_scale",
    "estimated_causal_inference",
    "finish_maps",
)


@dataclass
class DeviceAnswer:
    """One answer of T target tokens and K context tokens over N visual positions, on one device.

    The results go into the last four tensors. Values of row indices, names and lengths are read on the device.
    """

    scores: Tensor  # (U, N + K) float32, unit column stride
    context_rows: Tensor  # (K,) int64 rows of scores that are the context's maps
    context_names: Tensor  # (K,) int64
    target_rows: Tensor  # (T,) int64
    target_names: Tensor  # (T,) int64, -1: nothing is removed
    lengths: Tensor  # (T,) int64: context tokens that count as relevance
    text_lengths: Tensor  # (T,) int64: relevances that are normalised with the map
    sizes: list[tuple[int, int]]
    maps: Tensor  # (T, N) float32 or uint8, contiguous
    relevance: Tensor  # (T, K) float32, contiguous
    scale: Tensor  # (T,) float32
    flat: Tensor  # (T,) bool


@dataclass
class DeviceStep:
    """One more token of a stream; values that change between tokens are read on the device."""

    prompt: Tensor  # (P, C) states, unit column stride
    positions: Tensor  # (N + n_p,) int64 into prompt: visual, then the prompt's text
    states: Tensor  # (capacity, C) states from the prompt's last position on, which predict the answer
    classifier: Tensor  # (V, C)
    scores: Tensor  # (rows, N + n_p + capacity) float32
    state: Tensor  # (4,) int64: token id, row, length, is_new
    context_rows: Tensor  # (n_p + capacity,) int64
    context_names: Tensor  # (n_p + capacity,) int64
    target: Tensor  # (3,) int64: activation row, name (-1: no interference), length
    sizes: list[tuple[int, int]]
    n_p: int
    flag: Tensor  # (1,) int32
    maps: Tensor  # (1, N)
    relevance: Tensor  # (1, n_p + capacity)
    scale: Tensor  # (1,)
    flat: Tensor  # (1,)

    def as_answer(self) -> DeviceAnswer:
        """Return the token as an answer of one target, whose row, name and length are read when kernels run."""
        row, name, length = self.target[:1], self.target[1:2], self.target[2:]
        return DeviceAnswer(
            scores=self.scores,
            context_rows=self.context_rows,
            context_names=self.context_names,
            target_rows=row,
            target_names=name,
            lengths=length,
            text_lengths=length,
            sizes=self.sizes,
            maps=self.maps,
            relevance=self.relevance,
            scale=self.scale,
            flat=self.flat,
        )


@dataclass
class StepBuffers:
    """What a stream keeps between its tokens, on the CPU; a step uses the first rows of those with a capacity."""

    token: Tensor  # (1,) int64
    scores: Tensor  # (S, ) of the token over the prompt
    maps: Tensor  # (capacity, N) scores of every distinct token at the visual positions
    row: Tensor  # (1,) int64, the token's among them
    relevance: Tensor  # (capacity,) summed over the context tokens of one row
    text: Tensor  # (capacity,) raw relevance of every context token
    length: Tensor  # (1,) int64, how many there are
    scale: Tensor  # (1,)
    flat: Tensor  # (1,) bool


class Backend(Protocol):
    """One function per operator, the same names in every module of ``tam_fast.backends``."""

    def rank_gaussian_filter(
        self, maps: list[Tensor], kernel_size: int, *, constant_window_nan: bool = False
    ) -> list[Tensor]:
        """Filter every (..., H, W) tensor; contiguous results of the same dtype."""
        ...

    def token_scores(self, hidden: list[Tensor], classifier: Tensor, token_ids: list[Tensor]) -> list[Tensor]:
        """Score relu(F w): (S, C) of every answer, (V, C), (T,) int64 -> (T, S) float32."""
        ...

    def least_squares_scale(self, target: Tensor, interference: Tensor) -> Tensor:
        """Fit s of Eq. 5 over the last dimension: (..., N) each -> (...) float32, 0 where the interference is 0."""
        ...

    def estimated_causal_inference(
        self, activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Subtract scaled interference: (T, N), (K, N), (T, K) of every answer -> causal maps (T, N), scales (T,)."""
        ...

    def finish_maps(
        self,
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
        """Make maps of scores, as the schema in ``operators/library.py`` says; into `out` if given."""
        ...

    def info(self) -> dict[str, Any]:
        """Tell what serves it: instruction set, build, versions."""
        ...


class HostBackend(Backend, Protocol):
    """A backend that computes on the CPU, and the two operators for one more token of a stream."""

    def step_scores(
        self, buffers: StepBuffers, classifier: Tensor, prompt: Tensor | None, states: Tensor, count: int, begin: int
    ) -> None:
        """Score ``buffers.token`` over the prompt (S, C), if given, and over `count` of the states (capacity, C)."""
        ...

    def step_maps(
        self,
        buffers: StepBuffers,
        classes: int,
        length: int,
        sizes: list[tuple[int, int]],
        kernel_size: int,
        out: tuple[Tensor, Tensor],
    ) -> None:
        """Finish the map (N,) and the text (length,) of a token in a context of `length` tokens of `classes`."""
        ...


class DeviceBackend(Backend, Protocol):
    """A backend whose tensors stay on the device, from final hidden states to finished maps."""

    def answer_scores(
        self,
        hidden: list[Tensor],
        classifier: Tensor,
        classes: list[Tensor],
        positions: list[Tensor],
        flag: Tensor,
    ) -> list[Tensor]:
        """Score classes (U,) at positions (P,) of every answer: (U, P) float32; `flag` (1,) tells of NaN and Inf."""
        ...

    def answer_maps(self, answers: list[DeviceAnswer], kernel_size: int, *, constant_window_nan: bool = False) -> None:
        """Finish the maps of some answers, whose scores are there."""
        ...

    def step_answer(self, step: DeviceStep, kernel_size: int) -> None:
        """Score and finish one more token of a stream."""
        ...
