"""One answer under explanation: a model, what it is given, and which positions explain which tokens: :class:`Task`."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.models.capture import decoder_of, states_of
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.heads import Head
from tam_fast.models.logits import Transform
from tam_fast.models.recording import MISMATCH, record
from tam_fast.models.wrappers import input_device, uncompiled, unwrap

__all__ = ["DecoderCall", "Task", "hooked", "is_pixels", "layer_number", "layers_of"]


class _SeenError(Exception):
    """Unwinds a forward pass once what it gives the decoder has been seen."""


class DecoderCall:
    """What a model gives its text decoder: embeddings (1, S, C) and the rest, to call it again with others.

    Attributes
    ----------
    embeddings : (1, S, C) Tensor
        Without a graph, unless it was seen with one.
    """

    def __init__(self, decoder: torch.nn.Module, embeddings: Tensor, options: Mapping[str, Any]) -> None:
        self._decoder = decoder
        self.embeddings = embeddings if torch.is_grad_enabled() else embeddings.detach()
        self._options = dict(options)

    @property
    def pixels(self) -> list[str]:
        """Names of the pixels that a decoder is given which sees by itself; most are given embeddings alone."""
        return [name for name, value in self._options.items() if is_pixels(name, value)]

    @property
    def options(self) -> dict[str, Any]:
        """All that the decoder is given beside its embeddings."""
        return dict(self._options)

    def with_options(self, **options: Any) -> DecoderCall:
        """Make the same call with others of its options."""
        other = copy.copy(self)
        other._options = {**self._options, **options}
        return other

    def __call__(self, embeddings: Tensor | None = None) -> Tensor:
        """Run the decoder over embeddings (1, S, C), its own if none are given; final hidden states (S, C).

        A graph is built where gradients are switched on and something needs one. Embeddings (B, S, C) of several
        variants give (B, S, C).
        """
        given = self.embeddings if embeddings is None else embeddings
        options = self._options
        count = given.shape[0]
        if count > 1:
            options = {name: _repeated(value, count) for name, value in options.items()}
        output = self._decoder(inputs_embeds=given, **options)
        if count == 1:
            return states_of(output, self._decoder, graph=True)
        return torch.stack([states_of(_row(output, index), self._decoder, graph=True) for index in range(count)])


def _repeated(value: Any, count: int) -> Any:
    """Repeat what an input has for its one sequence; position ids of M-RoPE have the sequence second."""
    if isinstance(value, Tensor) and value.ndim >= 2:
        if value.shape[0] == 1:
            return value.expand(count, *value.shape[1:])
        if value.ndim == 3 and value.shape[0] in (3, 4) and value.shape[1] == 1:
            return value.expand(value.shape[0], count, value.shape[2])
    return value


def _row(output: Any, index: int) -> Any:
    state = getattr(output, "last_hidden_state", None)
    state = output[0] if state is None else state
    return (state[index : index + 1],)


class Task:
    """One answer that is explained.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model of images and text, or a bare text decoder with its classifier.
    inputs : mapping
        Of the model's forward over prompt and answer, without the answer's last token: ``input_ids`` (1, S) and what
        goes with the images, or ``inputs_embeds`` (1, S, C).
    layout : Layout
    token_ids : int Tensor, ndarray or list (S + 1,)
    with_prompt : bool
        Explain the prompt's words too, before the answer's tokens, each by the state at the position before its own:
        what causal inference needs on the maps of any method.

    Attributes
    ----------
    model, layout
    inputs : dict
        On the model's device and in its dtype.
    token_ids : (S + 1,) int64, CPU
    targets : (T,) int64
        The tokens that are explained.
    rows : (T,) int64
        Positions whose final states predict them.
    visual : (N,) int64
        Visual positions.
    head : Head
    decoder : torch.nn.Module

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        If arguments do not fit each other, or the model has no decoder or classifier.
    """

    @torch.inference_mode(False)  # what is made in inference mode could not become part of a graph
    def __init__(
        self, model: Any, inputs: Mapping[str, Any], layout: Layout, token_ids: Any, with_prompt: bool = False
    ) -> None:
        self.model = unwrap(model)
        if self.model.training:
            raise ValueError("model: expected evaluation mode, got training mode: call model.eval()")
        if not isinstance(layout, Layout):
            raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}")
        if not isinstance(inputs, Mapping) and not hasattr(inputs, "keys"):
            raise TypeError(f"inputs: expected a mapping for the model's forward, got {type(inputs).__name__}")
        self.decoder = decoder_of(self.model)
        if "reference_sliding_attention" in (getattr(self.decoder.config, "layer_types", None) or ()):
            raise ModelNotSupportedError(
                f"model: expected one whose passes need only their inputs, got {type(self.model).__name__}, whose "
                "attention is told where the prompt ends: method='tam' explains it"
            )
        self.head = Head(self.model)
        self.layout = layout
        self.token_ids = _usable(torch.as_tensor(token_ids).detach().to("cpu", torch.int64).flatten())
        device, dtype = input_device(self.model), self.model.dtype
        self.inputs = {name: _moved(inputs[name], device, dtype) for name in inputs.keys()}  # noqa: SIM118
        for name in ("use_cache", "past_key_values", "labels"):
            self.inputs.pop(name, None)
        length = self._length()
        if self.token_ids.numel() != length + 1:
            raise ValueError(
                f"token_ids: expected S + 1 = {length + 1} ids for inputs of S = {length} positions (the last "
                f"generated token has no position), got {self.token_ids.numel()}"
            )
        if not layout.answer_start <= length:
            raise ValueError(
                f"layout: expected answer_start of at most {length}, the number of positions, got {layout.answer_start}"
            )
        self.targets = self.token_ids[layout.answer_start :]
        self.rows = torch.arange(layout.answer_start - 1, length)
        if with_prompt:
            self.targets = torch.cat([self.token_ids[layout.prompt], self.targets])
            self.rows = torch.cat([(layout.prompt - 1).clamp_min(0), self.rows])
        self.visual = _usable(layout.visual_positions)

    def _length(self) -> int:
        for name in ("inputs_embeds", "input_ids"):
            value = self.inputs.get(name)
            if isinstance(value, Tensor):
                if value.ndim not in (2, 3) or value.shape[0] != 1:
                    raise ValueError(f"inputs: expected {name} of one sequence (1, S), got {tuple(value.shape)}")
                return int(value.shape[1])
        raise ValueError(
            f"inputs: expected input_ids or inputs_embeds, got {', '.join(sorted(self.inputs)) or 'nothing'}"
        )

    def __len__(self) -> int:
        """Return the number of targets, T."""
        return int(self.targets.numel())

    @property
    def positions(self) -> int:
        """S, the number of positions."""
        return int(self.token_ids.numel()) - 1

    # Passes --------------------------------------------------------------------------------------

    def with_inputs(self, inputs: Mapping[str, Any]) -> Task:
        """Make the same task of other values of the same inputs, such as other pixels."""
        other = copy.copy(self)
        other.inputs = dict(inputs)
        for name in ("call", "transform"):
            other.__dict__.pop(name, None)
        return other

    @cached_property
    def call(self) -> DecoderCall:
        """What the model gives its decoder; the vision tower runs once for all uses of it."""
        with torch.no_grad():
            return self.decoder_call()

    def decoder_call(self) -> DecoderCall:
        """Run what comes before the decoder, with a graph where gradients are switched on and something needs one."""
        seen: dict[str, Any] = {}
        thread = threading.get_ident()

        def look(_module: Any, arguments: Any, options: dict[str, Any]) -> None:
            if threading.get_ident() != thread:
                return
            bound = inspect.signature(type(self.decoder).forward).bind_partial(None, *arguments)
            given = {name: value for name, value in bound.arguments.items() if name != "self"}
            seen.update({**{name: value for name, value in given.items() if name != "kwargs"}, **options})
            raise _SeenError

        handle = self.decoder.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with uncompiled(self.model):
                self.model(**self.inputs, use_cache=False)
        except _SeenError:
            pass
        finally:
            handle.remove()
        embeddings = seen.pop("inputs_embeds", None)
        ids = seen.pop("input_ids", None)
        if embeddings is None and isinstance(ids, Tensor):
            embeddings = self._embedded(ids, seen)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 3 or embeddings.shape[:2] != (1, self.positions):
            got = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise ModelNotSupportedError(
                f"model: expected embeddings (1, {self.positions}, C) that {type(self.model).__name__} gives its "
                f"decoder {type(self.decoder).__name__}, got {got}"
            )
        options = {**seen, "use_cache": False, "past_key_values": None}
        known = inspect.signature(type(self.decoder).forward).parameters
        options = {name: value for name, value in options.items() if name in known or name in seen}
        return DecoderCall(self.decoder, embeddings, options)

    def _embedded(self, ids: Tensor, options: dict[str, Any]) -> Tensor | None:
        """Embed what a model gives its decoder as ids; decoders that read pixels themselves (Phi-4) put them in.

        Pixels are taken out of `options`: they are not to be put in again.
        """
        pixels = [name for name, value in options.items() if "pixel" in name and isinstance(value, Tensor)]
        if not pixels:
            found: Tensor = self.model.get_input_embeddings()(ids)
            return found
        seen: list[Tensor] = []
        thread = threading.get_ident()

        def look(_index: int, _layer: Any, arguments: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == thread:
                seen.extend(arguments[:1])
                raise _SeenError

        with suppress(_SeenError), hooked(self.layers[:1], look, pre=True), uncompiled(self.model):
            self.decoder(input_ids=ids, **{**options, "use_cache": False})
        for name in pixels:
            del options[name]
        return seen[0] if seen else None

    def hidden(self) -> Tensor:
        """Return final hidden states (S, C), without a graph."""
        with torch.no_grad(), uncompiled(self.model):
            return self.call()

    def classifier_rows(self, token_ids: Tensor | None = None) -> Tensor:
        """Return the classifier's rows (T, C) of the targets, or of other tokens, without a graph."""
        wanted = self.targets if token_ids is None else token_ids
        with torch.no_grad():
            like = torch.zeros((1, self.call.embeddings.shape[-1]), dtype=self.model.dtype, device=self.device)
            return self.head.rows(wanted, like).detach().to(self.device)

    def bias(self, token_ids: Tensor | None = None) -> Tensor | None:
        """Return what the lm_head adds to the logits of the targets (T,), None if nothing."""
        found = self.head.bias(self.targets if token_ids is None else token_ids)
        return None if found is None else found.to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the targets (T,) by final states (S, C) at the rows that predict them: z_i, as the lm_head gives them.

        Differentiable in `hidden`.
        """
        states = hidden[self.rows.to(hidden.device)]
        scores = (states * self.classifier_rows().to(states)).sum(dim=-1)
        bias = self.bias()
        return scores if bias is None else scores + bias.to(scores)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Return log p (T,) of the targets by final states (S, C), or (B, S, C) -> (B, T); without a graph."""
        many = hidden if hidden.ndim == 3 else hidden[None]
        states = many[:, self.rows.to(many.device)]
        targets = self.targets.to(many.device)
        found = []
        with torch.no_grad():
            for part in states:
                logits = self.transform(self.head.module(part[None])[0]).float()
                found.append(logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0])
        made = torch.stack(found)
        return made if hidden.ndim == 3 else made[0]

    @cached_property
    def transform(self) -> Transform:
        """What the model does to the logits of its lm_head, scaling or capping; found by a forward pass.

        Raises
        ------
        ModelNotSupportedError
            If it is something else.
        """
        with torch.no_grad(), uncompiled(self.model), record(self.model, self.head, 1) as seen:
            known = inspect.signature(type(self.model).forward).parameters
            self.model(**self.inputs, use_cache=False, **({"logits_to_keep": 1} if "logits_to_keep" in known else {}))
        found = seen.transform(self.head)
        if seen.trouble or found is None:
            why = seen.trouble or f"{type(self.model).__name__} changes the logits of its lm_head"
            raise ModelNotSupportedError(f"model: {MISMATCH}: {why}")
        return found

    @property
    def device(self) -> torch.device:
        """Where the decoder's inputs are."""
        return self.call.embeddings.device

    @property
    def layers(self) -> Sequence[torch.nn.Module]:
        """The decoder's layers, in order."""
        return layers_of(self.decoder)

    def layer(self, index: Any) -> int:
        """Check the number of a layer; negative ones count from the end."""
        return layer_number(self.layers, index)


def layer_number(layers: Sequence[torch.nn.Module], index: Any) -> int:
    """Check the number of a layer, ``layer=``; negative ones count from the end."""
    count = len(layers)
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise TypeError(f"layer: expected a layer's number, got {index!r}")
    if not -count <= index < count:
        raise ValueError(f"layer: expected a layer from 0 to {count - 1}, got {index}")
    return int(index.__index__()) % count


def layers_of(decoder: torch.nn.Module) -> Sequence[torch.nn.Module]:
    """Find the layers of a decoder, in order.

    Raises
    ------
    ModelNotSupportedError
        If there is no list of as many modules as the configuration has layers.
    """
    config = getattr(decoder, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    for _, child in decoder.named_children():
        if isinstance(child, torch.nn.ModuleList) and len(child) == count:
            return list(child)
    raise ModelNotSupportedError(
        f"model: expected a decoder with a list of its {count} layers, got {type(decoder).__name__} without"
    )


@contextmanager
def hooked(modules: Sequence[torch.nn.Module], look: Callable[..., Any], pre: bool = False) -> Iterator[None]:
    """Call ``look(index, module, inputs, output)`` after each of some modules ran (before, without output, if `pre`).

    What it returns, where it is not None, takes the place of the output (of the inputs, if `pre`). Calls from other
    threads pass unseen. The hooks are gone afterwards, also after an exception.
    """
    thread = threading.get_ident()

    def made(index: int) -> Callable[..., Any]:
        def after(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
            return look(index, module, arguments, output) if threading.get_ident() == thread else None

        def before(module: torch.nn.Module, arguments: Any) -> Any:
            return look(index, module, arguments) if threading.get_ident() == thread else None

        return before if pre else after

    handles = []
    try:
        for index, module in enumerate(modules):
            hook = made(index)
            handles.append(module.register_forward_pre_hook(hook) if pre else module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


# What models take pixels under.
_PIXELS = (
    *("pixel_values", "pixel_values_videos", "pixel_values_images", "pixel_values_local", "high_res_pixel_values"),
    *("image_pixel_values", "image_patches"),
)


def is_pixels(name: str, value: Any) -> bool:
    """Whether an input of a model is pixels, of images or videos."""
    return isinstance(value, Tensor) and value.is_floating_point() and name in _PIXELS


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _usable(value.to(device, dtype) if value.is_floating_point() else value.to(device))


def _usable(value: Tensor) -> Tensor:
    """Copy what was made in inference mode."""
    return value.clone() if value.is_inference() else value
