"""The context of a stream whose states are on a device: what a token needs is launched from one captured graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tam_fast.backends.contracts import DeviceBackend, DeviceStep
from tam_fast.maps.device_answer import to_device
from tam_fast.maps.layout import Layout
from tam_fast.maps.scores import ContextScores, check_finite, check_finite_states, score
from tam_fast.maps.tokens import check_classes

__all__ = ["DeviceContext"]

_CAPACITY = 64  # answer tokens that buffers are made for at first
_SLOTS = 8  # pinned memory for the values of that many steps, which the device may still be reading


class _Values:
    """Brings a step's few integers to the device without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._slots = torch.zeros((_SLOTS, 4), dtype=torch.int64, device="cpu", pin_memory=self._cuda)
        self._events = [torch.cuda.Event() for _ in range(_SLOTS)] if self._cuda else []
        self._next = 0

    def send(self, values: tuple[int, int, int, int], to: Tensor) -> None:
        slot, self._next = self._next, (self._next + 1) % _SLOTS
        if self._cuda:
            self._events[slot].synchronize()
        self._slots[slot] = torch.tensor(values, device="cpu")
        to.copy_(self._slots[slot], non_blocking=True)
        if self._cuda:
            self._events[slot].record(torch.cuda.current_stream(to.device))


class DeviceContext:
    """The context of the next token on a device; buffers double when they are full, and the graph is captured again.

    Parameters
    ----------
    backend : DeviceBackend
    prompt : Tensor (P, C)
        Final hidden states of the prompt.
    classifier : Tensor (V, C)
    layout : Layout
    prompt_tokens : list of int (n_p,)
        Ids of the prompt's text.
    interference, kernel_size
        As in :func:`tam_fast.activation_maps`.

    Attributes
    ----------
    states : int
        How many states there are from the prompt's last position on.

    Raises
    ------
    ValueError
        If a state or score that is needed is NaN or Inf.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        prompt: Tensor,
        classifier: Tensor,
        layout: Layout,
        prompt_tokens: list[int],
        interference: bool,
        kernel_size: int,
    ) -> None:
        self._backend, self._layout, self._kernel_size = backend, layout, kernel_size
        self._device = prompt.device
        self._start = layout.answer_start - 1
        classes = list(dict.fromkeys(prompt_tokens))
        check_classes(classes, classifier, "")
        self._row_of = {token: row for row, token in enumerate(classes)}  # token id -> row of its scores
        self._length = len(prompt_tokens)
        self._values = _Values(self._device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False
        self.states = 0
        rows = np.array([self._row_of[token] for token in prompt_tokens], dtype=np.int64)
        visual, text = layout.visual_positions.numpy(), layout.prompt.numpy()
        positions, indices, known, target = to_device(
            [
                np.concatenate([visual, text]),
                np.array(classes, dtype=np.int64),
                rows,
                np.array([0, 0 if interference else -1, 0], dtype=np.int64),
            ],
            self._device,
        )
        prompt = (prompt if prompt.stride(1) == 1 else prompt.contiguous()).resolve_neg()
        classifier = (classifier if classifier.stride(1) == 1 else classifier.contiguous()).resolve_neg()
        n_p = rows.size
        self._step = self._buffers(prompt, positions, classifier, target, len(classes) + _CAPACITY, n_p, _CAPACITY)
        if classes:
            scores = backend.answer_scores([prompt], classifier, [indices], [positions], self._step.flag)[0]
            self._step.scores[: len(classes), : positions.numel()] = scores
        self._step.context_rows[:n_p] = known
        self._step.context_names[:n_p] = known
        self._refuse_what_is_not_finite(classes, self._read())
        self.extend(prompt[-1:])

    def _buffers(
        self,
        prompt: Tensor,
        positions: Tensor,
        classifier: Tensor,
        target: Tensor,
        rows: int,
        n_p: int,
        capacity: int,
    ) -> DeviceStep:
        """Allocate what a step reads and writes; results lie side by side, to be read in one copy."""
        device, width = self._device, positions.numel()
        visual = width - n_p
        pitch = -(-(width + capacity) // 4) * 4  # rows that begin at 16 bytes are read faster
        self._packed = torch.zeros(visual + n_p + capacity + 3, dtype=torch.float32, device=device)
        self._visual = visual
        return DeviceStep(
            prompt=prompt,
            positions=positions,
            states=prompt.new_empty((capacity, prompt.shape[1])),
            classifier=classifier,
            scores=torch.zeros((rows, pitch), dtype=torch.float32, device=device)[:, : width + capacity],
            state=torch.zeros(4, dtype=torch.int64, device=device),
            context_rows=torch.zeros(n_p + capacity, dtype=torch.int64, device=device),
            context_names=torch.zeros(n_p + capacity, dtype=torch.int64, device=device),
            target=target,
            sizes=self._layout.sizes,
            n_p=n_p,
            flag=self._packed[-1:].view(torch.int32),
            maps=self._packed[:visual].view(1, visual),
            relevance=self._packed[visual:-3].view(1, -1),
            scale=self._packed[-3:-2],
            flat=self._packed[-2:-1].view(torch.bool)[:1],
        )

    def _reserve(self) -> None:
        """Make room for one more token."""
        step = self._step
        rows, capacity = step.scores.shape[0], step.states.shape[0]
        if self._length < step.context_rows.numel() and len(self._row_of) < rows and self.states <= capacity:
            return
        new = self._buffers(
            step.prompt,
            step.positions,
            step.classifier,
            step.target,
            2 * rows,
            step.n_p,
            max(2 * capacity, self.states),
        )
        new.scores[:rows, : step.scores.shape[1]] = step.scores
        new.states[:capacity] = step.states
        new.context_rows[: step.context_rows.numel()] = step.context_rows
        new.context_names[: step.context_names.numel()] = step.context_names
        self._step, self._graph, self._warm = new, None, False

    def extend(self, rows: Tensor) -> None:
        """Take over states (n, C). Those that are NaN or Inf are refused when a token reads them."""
        if rows.dtype != self._step.states.dtype:
            raise TypeError(f"hidden: expected {self._step.states.dtype} as before, got {rows.dtype}")
        begin, self.states = self.states, self.states + rows.shape[0]
        self._reserve()
        self._step.states[begin : self.states] = rows

    def append(self, token: int, out: tuple[Tensor, Tensor]) -> tuple[float, bool]:
        """Make the map (N,) and the relevance (K,) of the next token; return its scale and whether it is flat."""
        row = self._row_of.get(token)
        if row is None:
            check_classes([token], self._step.classifier, "")
        self._reserve()
        place = len(self._row_of) if row is None else row
        length = self._length
        self._values.send((token, place, length, int(row is None)), self._step.state)
        self._launch()
        found = self._read()
        self._refuse_what_is_not_finite([token], found)
        out[0].copy_(found[: self._visual])
        out[1].copy_(found[self._visual : self._visual + length])
        self._row_of[token] = place
        self._length = length + 1
        return float(found[-3]), bool(found[-2:-1].view(torch.bool)[0])

    def _launch(self) -> None:
        if self._device.type != "cuda":
            self._backend.step_answer(self._step, self._kernel_size)
            return
        with torch.cuda.device(self._device):
            if self._graph is None and not self._warm:
                # Compiles what is compiled at first use, which a capture must not contain.
                self._backend.step_answer(self._step, self._kernel_size)
                self._warm = True
                return
            if self._graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._backend.step_answer(self._step, self._kernel_size)
                self._graph = graph
            self._graph.replay()

    def _read(self) -> Tensor:
        """Wait for the device, and bring the results to the CPU."""
        return self._packed.to("cpu", copy=True)

    def _refuse_what_is_not_finite(self, classes: list[int], found: Tensor) -> None:
        """Look on the CPU for what the device found not to be finite, and raise."""
        if not found[-1:].view(torch.int32).item():
            return
        self._step.flag.zero_()
        wanted = np.array(classes, dtype=np.int64)
        step, first = self._step, self._start
        ContextScores(step.prompt, step.classifier, self._layout, "", "cpu")(wanted)
        count = self._length - step.n_p
        states = step.states[:count]
        check_finite_states(states, np.arange(count), "", first, "cpu")
        if count:
            check_finite(score(states, step.classifier, wanted, "cpu"), first, None, None, wanted, "", "cpu")
