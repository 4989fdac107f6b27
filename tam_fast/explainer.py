"""From a model and an image to an :class:`~tam_fast.explanation.Explanation`: :class:`Explainer`."""

from __future__ import annotations

import inspect
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tam_fast.capture import CapturedCandidates, capture, capture_candidates
from tam_fast.explanation import Candidate, Explanation
from tam_fast.layout import Layout
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.families import family_of
from tam_fast.models.inputs import ImageLike, PromptInputs, load_images, prepare_inputs
from tam_fast.models.layouts import visual_mask
from tam_fast.models.text import TextDecoder, token_pieces
from tam_fast.pipeline import Compat, TokenActivationMaps, activation_maps
from tam_fast.streaming import ActivationMapStream, TokenMap

__all__ = ["Explainer", "ExplanationStream", "Step"]

Answer: TypeAlias = "str | Sequence[int] | Tensor"

_CANDIDATES = 3
_MAX_NEW_TOKENS = 128
# Answer positions whose logits are made at a time under teacher forcing: 32 x 151,936 float32 values are 19 MB.
_LOGIT_ROWS = 32

# Values that per-position inputs have at the answer's positions: text, attended to.
_ANSWER_VALUES: Mapping[str, int] = MappingProxyType({"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0})

# Arguments of generate() with which there is no one sequence of states, or that are this library's to set.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "assistant_model": "assisted decoding runs another model's states",
        "prompt_lookup_num_tokens": "assisted decoding runs several positions a step",
        "custom_generate": "the decoding loop must be generate()'s own",
        "prefill_chunk_size": "the prompt must be processed in one piece",
        "streamer": "use Explainer.stream()",
        "inputs": "inputs are made of images and prompt",
        "input_ids": "inputs are made of images and prompt",
        "inputs_embeds": "inputs are made of images and prompt",
        "past_key_values": "the prompt must be processed from its beginning",
    }
)


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
    _writer: _Writer = field(repr=False)

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


class Explainer:
    """Explain what a vision-language model says: for each token, where in the images the model saw it.

    ::

        explainer = Explainer(model, processor)
        e = explainer.explain("street.jpg", "Describe this image.")
        e["bus"]

    The model is used as it is: its attention implementation, device and dtype stay, no gradients are computed, and
    beyond what ``generate`` holds anyway only one row of final hidden states a position is kept.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Qwen2-VL, Qwen2.5-VL or LLaVA-1.5, in evaluation mode.
    processor : transformers.ProcessorMixin
        Of that model; see :func:`tam_fast.load_processor`.

    Raises
    ------
    ModelNotSupportedError
        If the model type has no layout here, there is no classifier, or it is quantised; says what is missing.
    TypeError
        If `model` or `processor` are something else.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._family = family_of(model)
        for name in ("image_processor", "tokenizer"):
            if getattr(processor, name, None) is None:
                raise TypeError(f"processor: expected a processor with {name}, got {type(processor).__name__}")
        self.model = model
        self.processor = processor
        _classifier(model)

    def __repr__(self) -> str:
        return f"Explainer({type(self.model).__name__}, {type(self.processor).__name__})"

    def explain(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str = "Describe this image.",
        answer: Answer | None = None,
        *,
        compat: Compat = None,
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        **generate_kwargs: Any,
    ) -> Explanation:
        """Explain an answer to a prompt about images: the model's own, or a given one.

        Parameters
        ----------
        images : PIL image, path, (H, W, 3) uint8 array, or a sequence of them
            They stand before the text, in this order.
        prompt : str
            What the user says.
        answer : str, or int sequence or Tensor (T,), optional
            Explain this answer instead of generating one. Token ids are taken as they are. A string is tokenised behind
            the prompt where that leaves the prompt's tokens as they are, else on its own; for an answer that the model
            generated this gives its tokens back unless it spelt a word in an unusual way. One forward pass without a
            cache over prompt and answer; logits are made for the answer's positions only, a few at a time.
        compat : None, "official" or "paper"
            See :func:`tam_fast.activation_maps`.
        kernel_size : int
            Side of the rank Gaussian filter's window; 1 switches the filter off.
        max_new_tokens : int, optional
            Length limit of a generated answer. Default: what `generate_kwargs` or the model's generation configuration
            say, else 128.
        **generate_kwargs
            Passed on to ``model.generate``; none with `answer`.

        Returns
        -------
        Explanation
            Its tokens are the generated ones without the end mark that generation stopped at. Candidates are the three
            likeliest tokens of each step with their softmax probabilities over the vocabulary, from the model's logits
            before temperature and other sampling transforms. ``elapsed`` has seconds for ``prepare``, ``generate`` (or
            ``forward``), ``maps`` and ``total``.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            If an argument is empty, of another type or not supported (more than one sequence, assisted decoding), the
            model is in training mode, the answer has no token before its end mark, or a needed state is NaN or Inf.
        ModelNotSupportedError
            If processor and model do not fit together.

        Notes
        -----
        Generation and a teacher-forced pass over the same tokens give the same maps up to the rounding of the model's
        arithmetic, which sums differently for one row and for many.
        """
        started = time.perf_counter()
        job = self._prepare(images, prompt, kernel_size)
        job.elapsed["prepare"] = time.perf_counter() - started
        began = time.perf_counter()
        if answer is None:
            ids, hidden, candidates = self._generate(job, self._generate_arguments(max_new_tokens, generate_kwargs))
            job.elapsed["generate"] = time.perf_counter() - began
        else:
            if generate_kwargs:
                raise ValueError(f"generate_kwargs: expected none with answer=, got {', '.join(generate_kwargs)}")
            ids, hidden, candidates = self._force(job, self._answer_ids(job, answer))
            job.elapsed["forward"] = time.perf_counter() - began
        began = time.perf_counter()
        with torch.no_grad():
            maps = job.maps(ids, hidden, compat)
        job.elapsed["maps"] = time.perf_counter() - began
        writer = _Writer(self.processor.tokenizer, candidates)
        for token_id in ids:
            writer.append(token_id)
        writer.whole()
        job.elapsed["total"] = time.perf_counter() - started
        return job.explanation(maps, writer)

    def stream(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str = "Describe this image.",
        *,
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        **generate_kwargs: Any,
    ) -> ExplanationStream:
        """Generate an answer and explain each token as soon as it is there.

        ``generate`` runs in a thread of its own, but never at the same time as the loop over the steps: the model
        works while the loop waits for the next step. Leaving the loop, :meth:`ExplanationStream.close` or dropping the
        iterator stops generation at the next token and releases the hooks; an error in the model is raised in the loop.
        The model may be used for something else between two steps, but for Qwen-VL with transformers before 5.17, which
        keeps a prompt's position offset on the model.

        Parameters
        ----------
        images, prompt, kernel_size, max_new_tokens, **generate_kwargs
            As in :meth:`explain`.

        Returns
        -------
        ExplanationStream
            Iterate over it for :class:`Step` objects; then its ``explanation`` is what :meth:`explain` returns for the
            same tokens, with the same bits in its maps.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, ModelNotSupportedError
            As :meth:`explain`; what the model raises comes out of the loop. A state that is NaN or Inf is found when a
            map that needs it is read, or at the end of the loop.
        """
        started = time.perf_counter()
        arguments = self._generate_arguments(max_new_tokens, generate_kwargs)
        job = self._prepare(images, prompt, kernel_size)
        job.elapsed["prepare"] = time.perf_counter() - started
        return ExplanationStream(self, job, arguments)

    def _prepare(self, images: ImageLike | Sequence[ImageLike], prompt: str, kernel_size: int) -> _Job:
        if self.model.training:
            raise ValueError(
                "model: expected evaluation mode, got training mode, in which dropout makes states random: "
                "call model.eval()"
            )
        pictures = load_images(images)
        inputs = prepare_inputs(self.model, self.processor, pictures, prompt)
        return _Job(self.model, self.processor, _classifier(self.model), pictures, prompt, inputs, kernel_size)

    def _generate_arguments(self, max_new_tokens: int | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Check and complete the arguments of generate()."""
        arguments = {name: value for name, value in kwargs.items() if value is not None or name == "eos_token_id"}
        for name, reason in _REFUSED.items():
            if name in arguments:
                raise ValueError(f"generate_kwargs: expected no {name}: {reason}")
        configurations = [arguments.get("generation_config"), getattr(self.model, "generation_config", None)]
        for name in ("num_beams", "num_return_sequences"):
            value = _setting(name, arguments, configurations)
            if value is not None and value > 1:
                raise ValueError(f"generate_kwargs: expected {name} = 1 (one answer is explained), got {value}")
        for name in ("output_attentions", "output_hidden_states", "output_scores", "output_logits"):
            if arguments.pop(name, False):
                raise ValueError(f"generate_kwargs: expected no {name}: it would be kept for nothing")
        if max_new_tokens is not None:
            arguments["max_new_tokens"] = max_new_tokens
        elif (
            _setting("max_new_tokens", arguments, configurations) is None
            and _setting("max_length", arguments, configurations[:1]) is None
        ):
            arguments["max_new_tokens"] = _MAX_NEW_TOKENS
        # Some checkpoints switch the cache off for training; a compiled decoder would not see the hooks.
        if arguments.get("generation_config") is None:
            arguments.setdefault("use_cache", True)
            if hasattr(self.model.generation_config, "disable_compile"):
                arguments.setdefault("disable_compile", True)
        return arguments

    def _end_ids(self, arguments: Mapping[str, Any]) -> frozenset[int]:
        """Collect the ids that end an answer."""
        configurations = [arguments.get("generation_config"), getattr(self.model, "generation_config", None)]
        ends: set[int] = set()
        for value in (
            _setting("eos_token_id", arguments, configurations),
            getattr(self.processor.tokenizer, "eos_token_id", None),
        ):
            if value is not None:
                ends.update(int(end) for end in torch.as_tensor(value).flatten().tolist())
        return frozenset(ends)

    def _generate(self, job: _Job, arguments: dict[str, Any]) -> tuple[list[int], Tensor, CapturedCandidates]:
        """Generate an answer: its ids (T,), the states (P + T - 1, C) and each step's candidates."""
        with torch.no_grad(), capture(self.model) as states, capture_candidates(self.model, _CANDIDATES) as candidates:
            output = self.model.generate(**job.model_inputs(), **arguments)
        sequence = output if isinstance(output, Tensor) else output.sequences
        prompt_length = job.prompt.layout.answer_start
        generated = sequence[0, prompt_length:].tolist()
        ids = self._without_end(generated, self._end_ids(arguments))
        if states.prefill_length != prompt_length:
            raise ModelNotSupportedError(
                f"model: expected one state for each of the prompt's {prompt_length} positions, got "
                f"{states.prefill_length} from {type(self.model).__name__}"
            )
        return ids, states.hidden[: prompt_length + len(ids) - 1], candidates

    def _without_end(self, ids: list[int], ends: frozenset[int]) -> list[int]:
        """Drop the end marks that an answer closes with."""
        count = len(ids)
        while count and ids[count - 1] in ends:
            count -= 1
        if not count:
            names = self.processor.tokenizer.convert_ids_to_tokens(ids)
            raise ValueError(f"answer: expected at least one token before the end mark, got {names}")
        return ids[:count]

    def _answer_ids(self, job: _Job, answer: Answer) -> list[int]:
        """Bring a given answer to token ids (T,)."""
        if isinstance(answer, str):
            ids = self._tokenise(job, answer)
        else:
            try:
                tensor = torch.as_tensor(answer)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"answer: expected a string or token ids, got {type(answer).__name__}") from error
            if tensor.ndim != 1 or (tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool)):
                raise TypeError(f"answer: expected token ids (T,), got {tuple(tensor.shape)} of {tensor.dtype}")
            ids = [int(token_id) for token_id in tensor.tolist()]
        ids = self._without_end(ids, self._end_ids({}))
        rows = job.classifier.shape[0]
        for token_id in ids:
            if not 0 <= token_id < rows:
                raise ValueError(f"answer: expected token ids from 0 to {rows - 1}, got {token_id}")
        if bool(visual_mask(self.model.config, torch.tensor(ids)).any()):
            raise ValueError("answer: expected text, got a placeholder of an image or video")
        return ids

    def _tokenise(self, job: _Job, answer: str) -> list[int]:
        """Tokenise an answer as the continuation of the prompt."""
        if not answer:
            raise ValueError("answer: expected a text, got an empty string")
        tokenizer, rendered = self.processor.tokenizer, job.prompt.rendered
        prefix = job.prompt.family.answer_prefix
        tail = answer if not prefix or answer[0].isspace() else prefix + answer
        before = tokenizer(rendered.text, add_special_tokens=rendered.add_special_tokens)["input_ids"]
        whole = tokenizer(rendered.text + tail, add_special_tokens=rendered.add_special_tokens)["input_ids"]
        if whole[: len(before)] == before:
            found = whole[len(before) :]
        else:
            # The answer's first characters would join the prompt's last token, which generation cannot do either.
            found = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [int(token_id) for token_id in found]

    def _force(self, job: _Job, ids: list[int]) -> tuple[list[int], Tensor, CapturedCandidates]:
        """Run the model once over prompt and answer; as :meth:`_generate`."""
        # The last token predicts nothing that is explained: it gets no position.
        inputs: dict[str, Any] = dict(job.model_inputs(ids[:-1]))
        runner = self.model
        if "logits_to_keep" in inspect.signature(type(runner).forward).parameters:
            inputs["logits_to_keep"] = 1
        else:
            runner = runner.base_model
        with torch.no_grad(), capture(self.model) as states:
            runner(**inputs, use_cache=False)
        hidden = states.hidden
        first = job.prompt.layout.answer_start - 1
        if hidden.shape[0] != first + len(ids):
            raise ModelNotSupportedError(
                f"model: expected one state for each of {first + len(ids)} positions, got {hidden.shape[0]} from "
                f"{type(self.model).__name__}"
            )
        candidates = CapturedCandidates()
        head = self.model.get_output_embeddings()
        with torch.no_grad():
            for rows in hidden[first:].split(_LOGIT_ROWS):
                candidates.append(head(rows), _CANDIDATES)
        return ids, hidden, candidates


def _setting(name: str, arguments: Mapping[str, Any], configurations: Sequence[Any]) -> Any:
    """Look a setting of generate() up in the order in which generate() does; None if it is nowhere."""
    if name in arguments:
        return arguments[name]
    for configuration in configurations:
        value = getattr(configuration, name, None)
        if value is not None:
            return value
    return None


def _classifier(model: Any) -> Tensor:
    """Get the lm_head weight (V, C) of a model."""
    find = getattr(model, "get_output_embeddings", None)
    weight = getattr(find() if callable(find) else None, "weight", None)
    name = type(model).__name__
    if not isinstance(weight, Tensor):
        raise ModelNotSupportedError(f"model: expected get_output_embeddings() with a weight, got none in {name}")
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ModelNotSupportedError(
            f"model: expected an lm_head weight (V, C) of float32, float16, bfloat16 or float64, got "
            f"{tuple(weight.shape)} of {weight.dtype} in {name} (leave the lm_head out of quantisation)"
        )
    if weight.device.type == "meta":
        raise ModelNotSupportedError(
            f"model: expected an lm_head weight in memory, got one that is offloaded in {name}"
        )
    return weight.detach()


@dataclass(eq=False)
class _Job:
    """One prompt about some images, and what its explanation is made of."""

    model: Any
    processor: Any
    classifier: Tensor  # (V, C)
    images: list[Image.Image]
    text: str
    prompt: PromptInputs
    kernel_size: int
    elapsed: dict[str, float] = field(default_factory=dict)

    def model_inputs(self, answer: Sequence[int] = ()) -> dict[str, Tensor]:
        """Return what the model takes, on its device; with an answer's tokens behind the prompt's."""
        inputs = dict(self.prompt.inputs)
        if answer:
            tail = torch.tensor([list(answer)])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
            for name, value in _ANSWER_VALUES.items():
                if name in inputs:
                    inputs[name] = torch.cat([inputs[name], torch.full_like(tail, value, dtype=inputs[name].dtype)], 1)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def maps(self, ids: Sequence[int], hidden: Tensor, compat: Compat = None) -> TokenActivationMaps:
        return activation_maps(
            hidden.to(self.classifier.device),
            self.classifier,
            torch.cat([self.prompt.input_ids, torch.tensor(ids)]),
            self.prompt.layout,
            compat=compat,
            kernel_size=self.kernel_size,
        ).to("cpu")

    def explanation(self, maps: TokenActivationMaps, writer: _Writer) -> Explanation:
        decoder, candidates = writer.whole()
        ids = self.prompt.input_ids[self.prompt.layout.prompt].tolist()
        return Explanation(
            tokens=decoder.pieces,
            token_ids=writer.token_ids,
            text=decoder.text,
            offsets=decoder.offsets,
            maps=maps,
            candidates=candidates,
            images=self.images,
            prompt=self.text,
            context_tokens=token_pieces(self.processor.tokenizer, ids) + decoder.pieces[:-1],
            model=_model_name(self.model),
            elapsed=self.elapsed,
        )


def _model_name(model: Any) -> str:
    """Name a model: its hub id, the last part of its folder, or its class."""
    name = str(getattr(model.config, "name_or_path", "") or "")
    return (Path(name).name if Path(name).exists() else name) or type(model).__name__


class _Writer:
    """The answer as it grows: pieces, offsets, and candidates with their texts, decoded when they are asked for."""

    def __init__(self, tokenizer: Any, found: CapturedCandidates) -> None:
        self.token_ids: list[int] = []
        self._decoder = TextDecoder(tokenizer)
        self._candidates: list[list[Candidate]] = []
        self._texts: list[str] = []  # the answer after each token
        self._found = found
        self._lock = threading.Lock()

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def step(self, index: int) -> tuple[str, str, list[Candidate]]:
        """Return a token's piece, the text up to it, and the candidates."""
        self._decode(index + 1)
        return self._decoder.pieces[index], self._texts[index], self._candidates[index]

    def whole(self) -> tuple[TextDecoder, list[list[Candidate]]]:
        """Return the decoded answer and the candidates of all of its steps."""
        self._decode(len(self.token_ids))
        return self._decoder, self._candidates

    def _decode(self, count: int) -> None:
        with self._lock:
            for index in range(len(self._texts), count):
                self._append(self.token_ids[index], self._found[index])

    def _append(self, token_id: int, found: list[tuple[int, float]]) -> None:
        self._candidates.append([Candidate(other, self._decoder.peek(other), p) for other, p in found])
        self._decoder.append(token_id)
        self._texts.append(self._decoder.text)


class _Mapper:
    """Makes the maps of a stream's steps: of those that wait when one is read, of the others at the end."""

    def __init__(self, job: _Job, rows: deque[Tensor]) -> None:
        self._job = job
        self._rows = rows  # states (n, C) that have come and were not taken over
        self._stream: ActivationMapStream | None = ActivationMapStream(
            job.classifier, job.prompt.layout, job.prompt.input_ids, kernel_size=job.kernel_size
        )
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
            if self._made or not self._rows:
                self._make()
                return _gather(self._made, self._job.prompt)
            # Nobody has looked: to make them together is less work.
            ids = [token_id for token_id, _ in self._waiting]
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
            self._stream = None
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
                self._stream = None
                raise
            finally:
                self._job.elapsed["maps"] += time.perf_counter() - began

    def _make(self) -> None:
        """Make the maps of all steps that wait for theirs."""
        stream = self._stream
        if stream is None:
            return
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for rows in [self._rows.popleft() for _ in range(len(self._rows))]:
            stream.extend(rows.to(self._job.classifier.device))
        for token_id, reference in waiting:
            shown = stream.append(token_id)
            self._made.append(shown)
            if (step := reference()) is not None:
                step._source = shown


class _StoppedError(Exception):
    """Unwinds generate() in its thread when nobody wants more."""


class _Channel:
    """Hands tokens from the thread that generates to the one that iterates; only one of the two runs at a time."""

    def __init__(self) -> None:
        self.rows: deque[Tensor] = deque()  # states (n, C) that have not been taken over
        self.candidates = CapturedCandidates()
        self.error: BaseException | None = None
        self._tokens: SimpleQueue[int | None] = SimpleQueue()  # None at the end
        self._wanted: SimpleQueue[bool] = SimpleQueue()  # False: no more

    # The generating side.

    def run(self, generate: Callable[[_Channel], None]) -> None:
        try:
            if self._wanted.get():
                generate(self)
        except _StoppedError:
            pass
        except BaseException as error:  # all of it is the loop's to handle
            self.error = error
        self._tokens.put(None)

    def send(self, token_id: int) -> None:
        self._tokens.put(token_id)
        if not self._wanted.get():
            raise _StoppedError

    # The iterating side.

    def receive(self) -> int | None:
        """Let generation go on to its next token; None at its end."""
        self._wanted.put(True)
        return self._tokens.get()

    def close(self) -> None:
        self._wanted.put(False)


class _TokenStreamer:
    """What generate() calls a streamer: gets the prompt first, then each token."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        for token_id in value.flatten().tolist():
            self._channel.send(int(token_id))

    def end(self) -> None:
        """Do nothing: the thread's end says it."""


class _Ambience:
    """What torch keeps per thread, taken from the calling one: CUDA stream and autocast."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._autocast = None
        if torch.is_autocast_enabled(device.type):
            self._autocast = (device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_cache_enabled())

    def enter(self, stack: ExitStack) -> None:
        if self._stream is not None:
            stack.enter_context(torch.cuda.stream(self._stream))
        if self._autocast is not None:
            device_type, dtype, cached = self._autocast
            stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=cached))


class ExplanationStream(Iterator[Step]):
    """The steps of an answer while it is generated; from :meth:`Explainer.stream`.

    An iterator over :class:`Step`, and a context manager that closes it. Use it from one thread.

    Attributes
    ----------
    layout : Layout
        Of the prompt, known before the first step.
    """

    def __init__(self, explainer: Explainer, job: _Job, arguments: dict[str, Any]) -> None:
        self.layout = job.prompt.layout
        self._job = job
        self._ends = explainer._end_ids(arguments)
        self._channel = _Channel()
        self._mapper = _Mapper(job, self._channel.rows)
        self._writer = _Writer(explainer.processor.tokenizer, self._channel.candidates)
        self._count = 0
        self._maps: TokenActivationMaps | None = None
        self._held: list[int] = []  # end marks, shown only if something follows
        self._steps: deque[Step] = deque()
        self._explanation: Explanation | None = None
        self._state = "new"
        self._started = time.perf_counter()
        # The thread must not know this object, or dropping it would never close it.
        self._thread = threading.Thread(
            target=self._channel.run,
            args=(_generating(explainer.model, job, arguments, _Ambience(explainer.model.device)),),
            name="tam_fast-stream",
            daemon=True,
        )

    def __iter__(self) -> ExplanationStream:
        return self

    def __next__(self) -> Step:
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


def _generating(model: Any, job: _Job, arguments: dict[str, Any], ambience: _Ambience) -> Callable[[_Channel], None]:
    """Make the function that the generating thread runs."""

    def generate(channel: _Channel) -> None:
        with ExitStack() as stack:
            ambience.enter(stack)
            stack.enter_context(torch.no_grad())
            stack.enter_context(capture(model, on_states=channel.rows.append, keep=False))
            stack.enter_context(capture_candidates(model, _CANDIDATES, into=channel.candidates))
            model.generate(**job.model_inputs(), **arguments, streamer=_TokenStreamer(channel))

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
