"""What a model did while it generated, and the proof that it is what an explanation is made of: :class:`Recording`.

``generate`` is not the only one to call a model: guidance and contrastive decoding ask it again in every step. A call
is one of ``generate``'s own if it works on the cache of the first; of these, and of nothing else, the final hidden
states of the decoder, the logits of the lm_head and those that the model returned are taken, together. So at every step
it can be verified that the classifier rows of the likeliest tokens and of the chosen one, times the state that was
captured, are the logits that the model gave.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tam_fast.models.capture import CapturedCandidates, CapturedStates, decoder_of, states_of
from tam_fast.models.heads import Head
from tam_fast.models.logits import Transform, is_transformed, transform_of

__all__ = ["MISMATCH", "Points", "Recording", "Watch", "record", "verify"]

MISMATCH = "expected logits that are classifier rows times final hidden states"
_CACHES = ("past_key_values", "cache_params")
_STEPS = 256  # whose rows of the classifier are looked at together
_UNSET = object()


@dataclass(frozen=True)
class Points:
    """Logits of some tokens of some steps, next to the states that they were made of.

    Attributes
    ----------
    states : (n, C) Tensor
        Final hidden states.
    token_ids : (n, k) int64
    scored : (n, k) Tensor
        What the lm_head gave for them.
    logits : (n, k) Tensor
        What the model returned; those of the lm_head, or scaled or capped.
    """

    states: Tensor
    token_ids: Tensor
    scored: Tensor
    logits: Tensor


class _Step:
    """One step: its state (C,), and the logits (V,) of the lm_head and of the model, or what is needed of them."""

    def __init__(self, state: Tensor, scored: Tensor | None, logits: Tensor | None) -> None:
        self.state, self.scored, self.logits = state, scored, logits
        self.ids: Tensor | None = None
        self.best: tuple[Tensor, Tensor] | None = None
        self.chosen: Tensor | None = None  # id (1,), if the rows are still to be looked at

    def choose(self, token: Tensor) -> None:
        """Add the token that was chosen (1,) to those that are verified."""
        if self.scored is None or self.logits is None:
            return
        token = token.to(self.logits.device)
        if self.ids is None or self.best is None:
            self.chosen = token
            return
        self.ids = torch.cat([self.ids, token])
        logits = torch.cat([self.best[1], self.logits.gather(0, token)])
        scored = logits if self.best[0] is self.best[1] else torch.cat([self.best[0], self.scored.gather(0, token)])
        self.best = scored, logits

    def let_rows_go(self) -> None:
        """Keep no row of the vocabulary once all that is needed of it is known."""
        self.scored = self.logits = None

    def points(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return state (C,), ids (k,), and what the lm_head and the model gave for them."""
        if self.ids is None or self.best is None:
            assert self.logits is not None
            assert self.scored is not None
            ids = self.logits.topk(min(count, self.logits.shape[-1])).indices
            self.ids = ids if self.chosen is None else torch.cat([ids, self.chosen])
            logits = self.logits.gather(0, self.ids)
            self.best = logits if self.scored is self.logits else self.scored.gather(0, self.ids), logits
        return self.state, self.ids, *self.best


_DONE = _Step(torch.empty(0), None, None)


class Recording:
    """The final hidden states of ``generate``'s own steps, their candidates, and what is needed to verify them.

    Attributes
    ----------
    states : CapturedStates
    candidates : CapturedCandidates
    changed : tuple of two (V,) Tensors, or None
        The first step's logits, those of the lm_head and the model's, where these are others.
    closed : (V,) bool, or None
        Tokens whose logits the model overwrote, in place: they cannot come (Chameleon's codes of images).
    trouble : str
        Why the states cannot be those of one answer, '' as long as they can.
    """

    def __init__(self, count: int, candidates: CapturedCandidates | None = None, prompt_length: int = 0) -> None:
        self.trouble = ""
        self.states = CapturedStates()
        self.candidates = CapturedCandidates() if candidates is None else candidates
        self.changed: tuple[Tensor, Tensor] | None = None
        self.closed: Tensor | None = None
        self._count = count
        self._prompt_length = prompt_length  # 0: the first call is the prompt's
        self._points: list[_Step] = []
        self._fed: list[Tensor] = []  # ids of the answer as the model was given them
        self._lock = threading.Lock()
        self._settled = self._verified = 0

    def __len__(self) -> int:
        return len(self._points)

    def take(self, rows: Tensor, scored: Tensor, logits: Tensor, fed: Any, keep: bool) -> Tensor | None:
        """Take one of ``generate``'s own steps; return its new rows (n, C), None if there is trouble."""
        if self.trouble:
            return None
        have = len(self.states)
        is_prefill = not have or have < self._prompt_length
        try:
            rows = self.states.add(rows, keep, is_prefill)
        except ValueError as error:
            self.trouble = str(error).removeprefix("model: ")
            return None
        if len(self.states) < self._prompt_length:
            return rows  # a chunk of the prompt, whose logits say nothing of the answer
        if not is_prefill:
            self._feed(fed)
        same = scored.data_ptr() == logits.data_ptr() and scored.dtype == logits.dtype
        if is_prefill and not same:
            self.changed = scored.clone(), logits.clone()
        elif is_prefill:
            self.closed = logits <= torch.finfo(logits.dtype).min
        step = _Step(rows[-1], scored if not same else logits, logits)
        if self.candidates.may_wait(logits):
            # Few logits: looked at together, when steps are verified.
            step.logits = self.candidates.append_step(logits[None, None], self._count)[0, 0]
            step.scored = step.logits if same else scored.clone()
        else:
            ids, values = self.candidates.append(logits[None], self._count)
            step.ids = ids[0]
            step.best = (values[0], values[0]) if same else (scored.gather(0, step.ids), values[0])
        with self._lock:
            if self._points and self._points[-1].ids is not None:
                self._points[-1].let_rows_go()
            self._points.append(step)
            waiting = len(self._points) - self._settled
            if self.candidates.may_wait(logits) and self.candidates.is_enough(waiting, logits):
                self._settle()
        return rows

    def _settle(self) -> None:
        """Look at the rows of logits of all steps but the last, together, and let them go."""
        begin = max(self._settled, self._verified)
        steps = self._points[begin:-1]
        self._settled = len(self._points) - 1
        if not steps:
            return
        rows = [(step.scored, step.logits, step.chosen) for step in steps]
        logits = torch.stack([row[1] for row in rows if row[1] is not None])
        scored = torch.stack([row[0] for row in rows if row[0] is not None])
        ids = logits.topk(min(self._count, logits.shape[-1])).indices
        chosen = [row[2] for row in rows if row[2] is not None]
        if len(chosen) == len(steps):
            ids = torch.cat([ids, torch.stack(chosen)], dim=1)
        found = zip(ids, scored.gather(1, ids), logits.gather(1, ids), strict=True)
        for step, (some, first, second) in zip(steps, found, strict=True):
            step.ids, step.best = some, (second if step.scored is step.logits else first, second)
            step.let_rows_go()

    def _feed(self, fed: Any) -> None:
        """Note the token that the model was given, which is the one that it chose in the step before."""
        if not isinstance(fed, Tensor) or fed.ndim != 2 or not fed.shape[1] or not self._points:
            return
        chosen = fed[0, -1:]
        self._fed.append(chosen)
        with self._lock:
            self._points[-1].choose(chosen)

    def was_fed(self, token_ids: Sequence[int]) -> bool:
        """Whether the model was given these tokens, step by step, as far as it was given any by their ids."""
        if not self._fed:
            return True
        fed = torch.cat(self._fed).tolist()
        count = min(len(fed), len(token_ids))
        return bool(fed[:count] == list(token_ids[:count]))

    def transform(self, head: Head) -> Transform | None:
        """Say what the model does to the logits of its lm_head; None if it is neither scaling nor capping."""
        return Transform() if self.changed is None else transform_of(*self.changed, head.config)

    def verify(self, head: Head, at_least: int = 1) -> str:
        """Verify the steps that were not yet; return what is wrong, or ''.

        The first step is verified at once; after it, fewer than `at_least` wait.
        """
        if self.trouble:
            return self.trouble
        with self._lock:
            last = len(self._points)
            if self._verified and last - self._verified < at_least:
                return ""
            steps = self._points[self._verified : last]
            self._points[self._verified : last] = [_DONE] * len(steps)
            self._verified = last
        for begin in range(0, len(steps), _STEPS):
            some = [step.points(self._count) for step in steps[begin : begin + _STEPS]]
            for width in {part[1].numel() for part in some}:
                alike = [part for part in some if part[1].numel() == width]
                states, ids, scored, logits = (torch.stack(tensors) for tensors in zip(*alike, strict=True))
                if all(part[2] is part[3] for part in alike):
                    logits = scored
                if why := verify(head, Points(states, ids, scored, logits)):
                    self.trouble = why
                    return why
        return ""


class Watch(ABC):
    """Hooks on a model, its decoder and its head, for the calls of one thread on one cache; a context manager.

    What is common to :class:`record` and ``batches.record_rows``; these say what is done with what is seen.
    """

    def __init__(self, model: Any, head: Head) -> None:
        self._model, self._decoder, self._head = model, decoder_of(model), head.module
        self._handles: list[Any] = []
        self._thread = 0
        self._cache: Any = _UNSET
        self._own = False
        self._states: Tensor | None = None
        self._scored: Tensor | None = None
        self._fed: Any = None

    def _watch(self) -> None:
        self._thread = threading.get_ident()
        self._handles = [
            self._model.register_forward_pre_hook(self._called, with_kwargs=True),
            self._decoder.register_forward_hook(self._decoded),
            self._head.register_forward_hook(self._classified),
            self._model.register_forward_hook(self._returned),
        ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._cache = self._states = self._scored = self._fed = None

    def _is_own(self) -> bool:
        return self._own and threading.get_ident() == self._thread

    def _called(self, _module: Any, _arguments: Any, kwargs: dict[str, Any]) -> None:
        # Another thread that uses the model meanwhile is none of our business, nor are calls on other caches.
        if threading.get_ident() != self._thread:
            return
        cache = next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)
        if self._cache is _UNSET:
            self._cache = cache
        self._own = cache is self._cache
        self._states = self._scored = None
        self._fed = kwargs.get("input_ids")

    @abstractmethod
    def _decoded(self, module: Any, _inputs: Any, output: Any) -> None:
        """Keep the decoder's states."""

    def _classified(self, _module: Any, _inputs: Any, output: Any) -> None:
        """Keep the head's logits of the last position, of all rows."""
        if self._is_own() and isinstance(output, Tensor) and output.ndim == 3:
            self._scored = output.detach()[:, -1]

    def _returned(self, _module: Any, _inputs: Any, output: Any) -> None:
        """End a call: what was seen goes to :meth:`_take`."""
        if not self._is_own():
            return
        self._own = False
        if self._cache is None:  # some models make the first call's cache themselves
            self._cache = next((found for name in _CACHES if (found := getattr(output, name, None)) is not None), None)
        states, scored, self._states, self._scored = self._states, self._scored, None, None
        self._take(states, scored, getattr(output, "logits", None))

    @abstractmethod
    def _take(self, states: Tensor | None, scored: Tensor | None, logits: Any) -> None:
        """Take what was seen of a call: states, the head's logits, and those that the model returned."""


class record(Watch):
    """Record what a model does in ``generate`` inside a ``with`` block, in the thread that entered it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    head : Head
    count : int
        Candidates a step.
    into : CapturedCandidates, optional
        Where to add them.
    on_states : callable, optional
        Called with each new (n, C) chunk of states, in order.
    keep : bool
        False keeps no states, for use with `on_states`.
    prompt_length : int
        Positions of the prompt, which may come in chunks. 0 takes the first call for all of it.

    Raises
    ------
    TypeError
        If `model` has no ``get_decoder()``.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        count: int,
        *,
        into: CapturedCandidates | None = None,
        on_states: Callable[[Tensor], None] | None = None,
        keep: bool = True,
        prompt_length: int = 0,
    ) -> None:
        super().__init__(model, head)
        self._recording = Recording(count, into, prompt_length)
        self._on_states, self._keep = on_states, keep

    def __enter__(self) -> Recording:
        self._watch()
        return self._recording

    def _decoded(self, module: Any, _inputs: Any, output: Any) -> None:
        if self._is_own():
            try:
                self._states = states_of(output, module)
            except (TypeError, ValueError) as error:
                self._recording.trouble = self._recording.trouble or str(error).removeprefix("model: ")

    def _take(self, states: Tensor | None, scored: Tensor | None, logits: Any) -> None:
        if self._recording.trouble:
            return
        if states is None or not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[0] != 1:
            missing = "the decoder was not seen" if states is None else "there are no logits (1, n, V)"
            self._recording.trouble = f"in a call of {type(self._model).__name__} {missing}"
            return
        row = logits.detach()[0, -1]
        rows = self._recording.take(states, row if scored is None else scored[0], row, self._fed, self._keep)
        if rows is not None and self._on_states is not None:
            self._on_states(rows)


def verify(head: Head, points: Points) -> str:
    """Verify that a head's rows times states are the logits that a model gave; return what is wrong, or ''.

    The product of each state and each token's row, bias added, must be what the lm_head gave, within the rounding of
    its number format; and what the model returned must be that, times one positive factor or capped
    (``final_logit_softcapping``) for all. States that are not finite are let pass: maps refuse them and say where.
    """
    ids = points.token_ids
    if head.plain is not None:
        rows = head.rows(ids.flatten(), points.states).float().view(*ids.shape, -1)
    else:
        # Each is read once: that may take a whole matrix.
        some, inverse = torch.unique(ids, return_inverse=True)
        found = head.rows(some, points.states).float()
        rows = found[inverse.to(found.device)]
    states = points.states.to(rows.device, torch.float32)
    products = (rows @ states[:, :, None])[..., 0]
    bias = head.bias(ids.flatten())
    if bias is not None:
        products = products + bias.to(rows.device).view(ids.shape)
    scored = points.scored.to(rows.device, torch.float32)
    lengths = torch.linalg.vector_norm(states, dim=1)[:, None] * torch.linalg.vector_norm(rows, dim=2)
    # Not for what is not finite, with which every comparison is false.
    wrong = (products - scored).abs() > _allowed(points.scored, head, scored.abs(), lengths)
    if bool(wrong.any()):
        wrong &= torch.isfinite(scored)
        for step, place in wrong.nonzero().tolist():
            return (
                f"the lm_head of {head.name} gave {float(scored[step, place]):.5g} for token id "
                f"{int(ids[step, place])}, and its row times the captured state is {float(products[step, place]):.5g}"
            )
    if points.logits is points.scored or is_transformed(points.scored, points.logits, head.config):
        return ""
    return f"the logits of {head.name} are not those of its lm_head, scaled or capped"


def _allowed(logits: Tensor, head: Head, size: Tensor, lengths: Tensor) -> Tensor:
    """How far a product may lie from a logit of some size: rounding of the result, and of sums of some lengths."""
    dtype = logits.dtype
    if torch.is_autocast_enabled(logits.device.type):
        dtype = torch.get_autocast_dtype(logits.device.type)
    unit = torch.finfo(dtype).eps
    share = 32.0 * unit if dtype in (torch.float32, torch.float64) else 0.125 * unit
    if dtype in (torch.float32, torch.float64):
        # The state and the row may be of a narrower format, and matrix units may round float32.
        share = max(share, 4e-6)
        if logits.is_cuda and torch.get_float32_matmul_precision() != "highest":
            share = max(share, 2.0**-10)
    if not head.exact:
        share = max(share, 2.0**-6)
    return 2.0 * unit * size + share * lengths + 1e-6
