"""An answer that is explained while it is written: :class:`ExplanationStream` and its steps."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tam_fast.explain.answers import end_ids
from tam_fast.explain.job import CANDIDATES, Job, Writer
from tam_fast.explain.threads import Ambience, Channel, TokenStreamer
from tam_fast.explanation import Candidate, Explanation
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.layout import Layout
from tam_fast.maps.stream import ActivationMapStream, TokenMap
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.inputs import PromptInputs
from tam_fast.models.recording import MISMATCH, record
from tam_fast.models.wrappers import uncompiled

__all__ = ["ExplanationStream", "Step"]


@dataclass(eq=False)
class Step:
    """One generated token and its map.

    Attributes
    ----------
    index : int
        Place in the answer, from 0.
    token : str
        The decoded piece, with its leading space.
    token_id : int
    text : str
        The answer so far. Bytes at its end that are no whole character yet show as U+FFFD.
    map : (N,) float32
        Over the grids' positions in order, in [0, 1].
    relevance : (k,) float32
        Of the prompt's tokens and of the answer's so far, on the scale of the map.
    scale : float
        s of Eq. 5 of the TAM paper.
    flat : bool
        True where there is nothing to show.
    candidates : list of Candidate
        The likeliest tokens at this step, most probable first.
    layout : Layout

    Notes
    -----
    All but `index`, `token_id` and `layout` is made when it is first read, by whichever thread; maps that nobody has
    read are made together at the end of the stream, or when it is closed.
    """

    index: int
    token_id: int
    layout: Layout
    _source: TokenMap | _Mapper = field(repr=False)  # a mapper until the map is made
    _writer: Writer = field(repr=False)

    @property
    def _shown(self) -> TokenMap:
        source = self._source
        return source if isinstance(source, TokenMap) else source.read(self)

    @property
    def map(self) -> Tensor:
        """The map (N,) float32, over the grids' positions in order, in [0, 1]."""
        return self._shown.map

    @property
    def relevance(self) -> Tensor:
        """Relevance (k,) float32 of the prompt's tokens and of the answer's so far, on the scale of the map."""
        return self._shown.relevance

    @property
    def scale(self) -> float:
        """The s of Eq. 5 of the TAM paper."""
        return self._shown.scale

    @property
    def flat(self) -> bool:
        """True where there is nothing to show."""
        return self._shown.flat

    @cached_property
    def _written(self) -> tuple[str, str, list[Candidate]]:
        return self._writer.step(self.index)

    @property
    def token(self) -> str:
        """The decoded piece, with its leading space."""
        return self._written[0]

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._written[1]

    @property
    def candidates(self) -> list[Candidate]:
        """The likeliest tokens at this step, most probable first."""
        return self._written[2]

    def __getstate__(self) -> dict[str, Any]:
        # Copies go without the tokenizer and the states.
        state = {**self.__dict__, "_source": self._shown, "_written": self._written}
        del state["_writer"]
        return state

    def grid(self, g: int = 0) -> Tensor:
        """Return the map on grid `g`: a (H, W) float32 view.

        Raises
        ------
        IndexError
            If there is no such grid.
        """
        grids = self.layout.grids
        if not -len(grids) <= g < len(grids):
            raise IndexError(f"g: expected a grid from 0 to {len(grids) - 1}, got {g}")
        g %= len(grids)
        begin = self.layout.offsets[g]
        return self.map[begin : begin + len(grids[g])].view(grids[g].shape)


class _Mapper:
    """Makes the maps of a stream's steps: of those that wait when one is read, of the others at the end."""

    def __init__(self, job: Job, channel: Channel) -> None:
        self._job = job
        self._channel = channel
        self._rows = channel.rows  # states (n, C) that have come and were not taken over
        self._stream: ActivationMapStream | None = None
        self._device = torch.device("cpu")  # of the classifier, once there is a stream
        self._closed = False
        self._made: list[TokenMap] = []
        self._waiting: deque[tuple[int, weakref.ref[Step]]] = deque()
        self._error: Exception | None = None
        self._lock = threading.RLock()  # garbage may be collected at any place, and a stream closed by that

    def add(self, step: Step) -> None:
        self._waiting.append((step.token_id, weakref.ref(step)))

    def read(self, step: Step) -> TokenMap:
        """Return the map of one step."""
        with self._at_work():
            self._make()
        source = step._source
        if isinstance(source, TokenMap):
            return source
        raise self._error or RuntimeError(f"map: expected an open stream, got one closed before token {step.index}")

    def finish(self) -> TokenActivationMaps:
        """Return the maps of the whole answer."""
        with self._at_work():
            if self._error is not None:
                raise self._error
            ids = [*(token.token_id for token in self._made), *(token_id for token_id, _ in self._waiting)]
            self._verify(1, ids)
            if self._made or not self._rows:
                self._make()
                return _gather(self._made, self._job.prompt)
            # Nobody has looked: to make them together is less work.
            hidden = torch.cat(list(self._rows))[: self._job.prompt.layout.answer_start + len(ids) - 1]
            maps = self._job.maps(ids, hidden)
            for index, (_, reference) in enumerate(self._waiting):
                if (step := reference()) is not None:
                    step._source = _token_map(maps, index)
            self._waiting.clear()
            return maps

    def close(self) -> None:
        """Make the maps that somebody may still read, if that can be done, and let the states go."""
        with self._lock:
            if any(reference() is not None for _, reference in self._waiting):
                with suppress(Exception), self._at_work():  # whoever reads the step is told
                    self._make()
            self._stream, self._closed = None, True
            self._waiting.clear()
            self._rows.clear()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._lock:
            began = time.perf_counter()
            try:
                yield
            except BaseException as error:
                self._error = error if isinstance(error, Exception) else RuntimeError("map: interrupted")
                self._stream, self._closed = None, True
                raise
            finally:
                self._job.elapsed["maps"] += time.perf_counter() - began

    def _make(self) -> None:
        """Make the maps of all steps that wait for theirs."""
        if self._closed:
            return
        job = self._job
        stream = self._stream
        if stream is None and self._rows:
            classifier = job.head.matrix(self._rows[0])
            stream = self._stream = ActivationMapStream(
                classifier, job.prompt.layout, job.prompt.input_ids, kernel_size=job.kernel_size
            )
            self._device = classifier.device
        # Fewer steps at a time would cost a small model a tenth of its own time.
        self._verify(8)
        if stream is None:
            return
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for rows in [self._rows.popleft() for _ in range(len(self._rows))]:
            stream.extend(rows.to(self._device))
        for token_id, reference in waiting:
            shown = stream.append(token_id)
            self._made.append(shown)
            if (step := reference()) is not None:
                step._source = shown

    def _verify(self, at_least: int, token_ids: Sequence[int] = ()) -> None:
        recording = self._channel.recording
        if recording is None:
            why = "no step of the model was seen"
        elif len(recording) < (count := len(self._made) + len(self._waiting)):
            why = recording.trouble or f"{len(recording)} steps of {count} were seen"
        elif not recording.was_fed(token_ids):
            why = "its steps were given other tokens than the answer's"
        else:
            why = recording.verify(self._job.head, at_least)
        if why:
            raise ModelNotSupportedError(
                f"model: {MISMATCH}: {why}. Explainer.explain() takes the states from a pass over the finished answer "
                "instead"
            )


class ExplanationStream(Iterator[Step]):
    """The steps of an answer while it is generated; from :meth:`Explainer.stream`.

    An iterator over :class:`Step`, and a context manager that closes it. One thread at a time may take a step; another
    one that tries meanwhile gets a RuntimeError.

    Attributes
    ----------
    layout : Layout
        Of the prompt, known before the first step.
    """

    def __init__(self, job: Job, arguments: dict[str, Any]) -> None:
        self.layout = job.prompt.layout
        self._job = job
        self._ends = end_ids(job, arguments)
        self._channel = Channel()
        self._mapper = _Mapper(job, self._channel)
        self._writer = Writer(job.processor.tokenizer, self._channel.candidates)
        self._count = 0
        self._maps: TokenActivationMaps | None = None
        self._held: list[int] = []  # end marks, shown only if something follows
        self._steps: deque[Step] = deque()
        self._turn = threading.Lock()
        self._explanation: Explanation | None = None
        self._state = "new"
        self._started = time.perf_counter()
        # The thread must not know this object, or dropping it would never close it.
        self._thread = threading.Thread(
            target=self._channel.run,
            args=(_generating(job, arguments, Ambience(job.model.device)),),
            name="tam_fast-stream",
            daemon=True,
        )

    def __iter__(self) -> ExplanationStream:
        return self

    def __next__(self) -> Step:
        # Two threads that wait for one token would wait for ever.
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("stream: expected one thread at a time, got a second one while the first takes a step")
        try:
            return self._next()
        finally:
            self._turn.release()

    def _next(self) -> Step:
        if self._state == "new":
            self._state = "open"
            self._started = time.perf_counter()
            self._job.elapsed.update(generate=0.0, maps=0.0)
            self._thread.start()
        while self._state == "open" and not self._steps:
            began = time.perf_counter()
            token_id = self._channel.receive()
            self._job.elapsed["generate"] += time.perf_counter() - began
            if token_id is None:
                self._finish()
            else:
                self._take(token_id)
        if not self._steps:
            raise StopIteration
        return self._steps.popleft()

    def _take(self, token_id: int) -> None:
        """Turn a token into a step; an end mark waits until another token shows that it ended nothing."""
        began = time.perf_counter()
        self._held.append(token_id)
        if token_id not in self._ends:
            for held in self._held:
                step = Step(self._count, held, self.layout, self._mapper, self._writer)
                self._count += 1
                self._writer.append(held)
                self._mapper.add(step)
                self._steps.append(step)
            self._held.clear()
        self._job.elapsed["maps"] += time.perf_counter() - began

    def _finish(self) -> None:
        self._thread.join()
        error = self._channel.error
        self._state = "failed" if error is not None else "done"
        if error is not None:
            self._channel.error = None
            self._mapper.close()
            if isinstance(error, StopIteration):
                # As it is, it would end the loop as if the answer were whole.
                raise RuntimeError(f"stream: expected generate() to return, got StopIteration: {error}") from error
            raise error
        if not self._count:
            self._state = "failed"
            names = self._job.processor.tokenizer.convert_ids_to_tokens(self._held)
            raise ValueError(f"answer: expected at least one token before the end mark, got {names}")
        try:
            self._maps = self._mapper.finish()
        except BaseException:
            self._state = "failed"
            raise
        finally:
            self._mapper.close()
        self._job.elapsed["total"] = self._job.elapsed["prepare"] + time.perf_counter() - self._started

    @property
    def explanation(self) -> Explanation:
        """What :meth:`Explainer.explain` returns for the whole answer.

        Raises
        ------
        RuntimeError
            If the steps have not all been taken, or generation failed or was stopped.
        """
        if self._maps is None:
            raise RuntimeError(
                f"explanation: expected the stream to be iterated to its end, got one that is {self._state} after "
                f"{self._count} tokens"
            )
        if self._explanation is None:
            self._explanation = self._job.explanation(self._maps, self._writer)
        return self._explanation

    def close(self) -> None:
        """Stop generation at its next token and wait for its thread; hooks are released then. May be called twice."""
        if self._state in ("new", "open"):
            began, self._state = self._state == "open", "closed"
            self._channel.close()
            if began and threading.current_thread() is not self._thread:
                self._thread.join()
            self._mapper.close()
        self._steps.clear()

    def __enter__(self) -> ExplanationStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end the thread, a daemon, is gone and cannot be waited for.
        if hasattr(self, "_thread") and not sys.is_finalizing():
            self.close()


def _generating(job: Job, arguments: dict[str, Any], ambience: Ambience) -> Callable[[Channel], None]:
    """Make the function that the generating thread runs."""

    def generate(channel: Channel) -> None:
        with ExitStack() as stack:
            ambience.enter(stack)
            stack.enter_context(torch.no_grad())
            stack.enter_context(uncompiled(job.model, always=arguments.get("generation_config") is not None))
            recorder = record(
                job.model,
                job.head,
                CANDIDATES,
                into=channel.candidates,
                on_states=channel.rows.append,
                keep=False,
                prompt_length=job.prompt.layout.answer_start,
            )
            channel.recording = stack.enter_context(recorder)
            job.model.generate(**job.model_inputs(), **arguments, streamer=TokenStreamer(channel))

    return generate


def _token_map(maps: TokenActivationMaps, index: int) -> TokenMap:
    """Take the map of a single token."""
    return TokenMap(
        int(maps.target_ids[index]),
        index,
        maps.maps[index],
        maps.relevance[index, : maps.layout.prompt.numel() + index],
        float(maps.scale[index]),
        bool(maps.flat[index]),
    )


def _gather(shown: Sequence[TokenMap], prompt: PromptInputs) -> TokenActivationMaps:
    """Put the maps of single tokens together."""
    context = prompt.layout.prompt.numel() + len(shown) - 1
    relevance = np.zeros((len(shown), context), dtype=np.float32)
    for row, token in zip(relevance, shown, strict=True):
        row[: token.relevance.numel()] = token.relevance.numpy()
    ids = torch.tensor([token.token_id for token in shown], dtype=torch.int64)
    return TokenActivationMaps(
        maps=torch.stack([token.map for token in shown]),
        relevance=torch.from_numpy(relevance),
        scale=torch.tensor([token.scale for token in shown], dtype=torch.float32),
        flat=torch.tensor([token.flat for token in shown]),
        context_ids=torch.cat([prompt.input_ids[prompt.layout.prompt], ids[:-1]]),
        target_ids=ids,
        layout=prompt.layout,
    )
