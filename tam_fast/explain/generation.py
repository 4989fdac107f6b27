"""Where an answer comes from: what ``generate`` may be given and how it is watched; passes over given answers."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tam_fast.explain.answers import end_ids, setting_of, without_end
from tam_fast.explain.job import CANDIDATES, Job
from tam_fast.models.capture import CapturedCandidates
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.logits import Transform
from tam_fast.models.recording import MISMATCH, Points, Recording, record, verify
from tam_fast.models.wrappers import uncompiled

__all__ = ["doubt", "force", "generate", "generate_arguments", "read"]

_log = logging.getLogger(__name__)

_MAX_NEW_TOKENS = 128
# Answer positions whose logits are made at a time under teacher forcing: 32 x 151,936 float32 values are 19 MB.
_LOGIT_ROWS = 32

# Arguments of generate() that are this library's to set.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "custom_generate": "the decoding loop must be generate()'s own",
        "streamer": "use Explainer.stream()",
        "inputs": "inputs are made of images and prompt",
        "input_ids": "inputs are made of images and prompt",
        "inputs_embeds": "inputs are made of images and prompt",
        "past_key_values": "the prompt must be processed from its beginning",
    }
)


# With these a step is not one new position of one sequence: the states come from a pass over the finished answer.
_UNWATCHED: Mapping[str, str] = MappingProxyType(
    {
        "num_beams": "a beam search writes several answers at a time",
        "assistant_model": "assisted decoding runs another model's states",
        "prompt_lookup_num_tokens": "assisted decoding runs several positions a step",
        "assistant_early_exit": "assisted decoding runs several positions a step",
    }
)


def generate_arguments(
    model: Any, max_new_tokens: int | None, kwargs: Mapping[str, Any], stream: bool = False
) -> dict[str, Any]:
    """Check and complete the arguments of generate(); for a stream, those with which no step can be shown, too."""
    arguments = {name: value for name, value in kwargs.items() if value is not None or name == "eos_token_id"}
    for name, reason in _REFUSED.items():
        if name in arguments:
            raise ValueError(f"generate_kwargs: expected no {name}: {reason}")
    for name in ("answer", "compat"):
        if name in arguments:
            raise ValueError(f"{name}: expected none for a stream, got {arguments[name]!r}: use explain()")
    _check_names(model, arguments)
    max_new_tokens = _check_length("max_new_tokens", max_new_tokens)
    given = arguments.get("generation_config")
    if given is not None and not hasattr(given, "max_new_tokens"):
        raise TypeError(f"generation_config: expected a transformers.GenerationConfig, got {type(given).__name__}")
    configurations = [arguments.get("generation_config"), getattr(model, "generation_config", None)]
    returned = setting_of("num_return_sequences", arguments, configurations)
    if returned is not None and returned != 1:
        raise ValueError(
            f"generate_kwargs: expected num_return_sequences = 1 (one answer is explained), got {returned}"
        )
    beams = setting_of("num_beams", arguments, configurations)
    if beams is not None and beams < 1:
        raise ValueError(f"generate_kwargs: expected num_beams of at least 1, got {beams}")
    if stream and (why := _unwatched(model, arguments)):
        raise ValueError(f"generate_kwargs: expected no {why} (a stream shows every step): use explain()")
    for name in ("output_attentions", "output_hidden_states", "output_scores", "output_logits"):
        if arguments.pop(name, False):
            raise ValueError(f"generate_kwargs: expected no {name}: it would be kept for nothing")
    if max_new_tokens is not None:
        arguments["max_new_tokens"] = max_new_tokens
    elif (
        setting_of("max_new_tokens", arguments, configurations) is None
        and setting_of("max_length", arguments, configurations[:1]) is None
    ):
        arguments["max_new_tokens"] = _MAX_NEW_TOKENS
    # Some checkpoints switch the cache off for training; a compiled decoder would not see the hooks.
    if arguments.get("generation_config") is None:
        arguments.setdefault("use_cache", True)
        if hasattr(model.generation_config, "disable_compile"):
            arguments.setdefault("disable_compile", True)
    return arguments


def _unwatched(model: Any, arguments: Mapping[str, Any]) -> str:
    """Say which argument leaves no steps whose states are the answer's, and why; '' if none does."""
    configurations = [arguments.get("generation_config"), getattr(model, "generation_config", None)]
    for name, why in _UNWATCHED.items():
        value = setting_of(name, arguments, configurations)
        if value is not None and not (name == "num_beams" and value == 1):
            return f"{name}: {why}"
    return ""


def _check_names(model: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what generate() would take for an input of the model, or not at all, before it runs."""
    from transformers import GenerationConfig

    settings = {
        *vars(GenerationConfig()),
        *inspect.signature(model.generate).parameters,
        "tokenizer",
        "disable_compile",
    }
    for name in arguments:
        if name in settings:
            continue
        if name in inspect.signature(type(model).forward).parameters:
            raise ValueError(f"generate_kwargs: expected no {name}: inputs are made of images and prompt")
        raise ValueError(f"generate_kwargs: expected arguments of generate(), got {name}")


def _check_length(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if int(value.__index__()) < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value.__index__())


def generate(job: Job, arguments: dict[str, Any]) -> tuple[list[int], Tensor, CapturedCandidates]:
    """Generate an answer: its ids (T,), the states (P + T - 1, C) and each step's candidates.

    Where the states of ``generate``'s steps cannot be shown to be the answer's, they come from a pass over it
    (:func:`force`), and ``job.source`` says so.
    """
    given = arguments.get("generation_config") is not None  # which may ask for a compiled decoder
    prompt_length = job.prompt.layout.answer_start
    why = _unwatched(job.model, arguments)
    recording: Recording | None = None
    with torch.no_grad(), uncompiled(job.model, always=given), contextlib.ExitStack() as stack:
        if not why:
            recording = stack.enter_context(record(job.model, job.head, CANDIDATES, prompt_length=prompt_length))
        output = job.model.generate(**job.model_inputs(), **arguments)
    sequence = output if isinstance(output, Tensor) else output.sequences
    generated = sequence[0, prompt_length:].tolist()
    ids = without_end(job, generated, end_ids(job, arguments))
    if recording is not None:
        with torch.no_grad():
            why = doubt(job, recording, generated, len(ids))
    if why or recording is None:
        job.source = "teacher_forced"
        _log.info("states of a pass over the finished answer: %s", why)
        try:
            return force(job, ids)
        except ModelNotSupportedError as error:
            raise ModelNotSupportedError(f"{error} (and while it generated: {why})") from error
    return ids, recording.states.hidden[: prompt_length + len(ids) - 1], recording.candidates


def doubt(job: Job, recording: Recording, generated: Sequence[int], count: int) -> str:
    """Say why what was recorded is not shown to be the states of the answer of `count` tokens, '' if it is."""
    prompt_length = job.prompt.layout.answer_start
    if recording.trouble:
        return recording.trouble
    if len(recording) < count:
        return f"{len(recording)} steps of {count} were seen"
    if recording.states.prefill_length != prompt_length:
        return f"{recording.states.prefill_length} states were made of {prompt_length} positions of the prompt"
    if not recording.was_fed(generated):
        return "its steps were given other tokens than the answer's"
    return recording.verify(job.head)


def _prompts_end(job: Job) -> dict[str, Any]:
    """Tell a model where the prompt ends, if an answer's tokens attend to all of it and to few of their own.

    Unlimited-OCR does; it keeps the length in its cache.
    """
    config = job.model.config.get_text_config(decoder=True)
    if "reference_sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return {"use_cache": False}
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    for layer in cache.layers:
        if hasattr(layer, "set_prefill_length"):
            layer.set_prefill_length(job.prompt.layout.answer_start)
    return {"use_cache": True, "past_key_values": cache}


@contextlib.contextmanager
def _last_position(module: torch.nn.Module) -> Iterator[None]:
    """Let an lm_head see no more than the last position, for models without ``logits_to_keep``."""
    handle = module.register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]) if args else None)
    try:
        yield
    finally:
        handle.remove()


def force(job: Job, ids: list[int]) -> tuple[list[int], Tensor, CapturedCandidates]:
    """Run the model once over prompt and answer; as :func:`generate`.

    Raises
    ------
    ModelNotSupportedError
        If the rows of the classifier, times the states, are not the logits that the model gives.
    """
    # The last token predicts nothing that is explained: it gets no position.
    first = job.prompt.layout.answer_start - 1
    recording, hidden = _pass(job, ids[:-1])
    return ids, hidden, candidates_of(job, recording, hidden[first:], ids)


def read(job: Job) -> tuple[list[int], Tensor, CapturedCandidates]:
    """Run the model once over the prompt: ids (n_p,) of its words, states (P, C), and what was likely at each word.

    Raises
    ------
    ModelNotSupportedError
        As :func:`force`.
    """
    recording, hidden = _pass(job, [])
    places = job.words
    before = (places - 1).clamp_min(0).to(hidden.device)
    ids = job.prompt.input_ids[places].tolist()
    return ids, hidden, candidates_of(job, recording, hidden[before], ids)


def _pass(job: Job, tail: Sequence[int]) -> tuple[Recording, Tensor]:
    """Run the model over the prompt and some tokens behind it; return what was seen and the states (S, C)."""
    inputs: dict[str, Any] = dict(job.model_inputs(tail))
    with torch.no_grad(), uncompiled(job.model), record(job.model, job.head, CANDIDATES) as recording:
        if "logits_to_keep" in inspect.signature(type(job.model).forward).parameters:
            job.model(**inputs, logits_to_keep=1, **_prompts_end(job))
        else:
            with _last_position(job.head.module):
                job.model(**inputs, **_prompts_end(job))
    if recording.trouble:
        raise ModelNotSupportedError(f"model: {MISMATCH}: {recording.trouble}")
    hidden = recording.states.hidden
    expected = job.prompt.layout.answer_start + len(tail)
    if hidden.shape[0] != expected:
        raise ModelNotSupportedError(
            f"model: expected one state for each of {expected} positions, got {hidden.shape[0]} from "
            f"{type(job.model).__name__}"
        )
    return recording, hidden


def candidates_of(job: Job, recording: Recording, states: Tensor, ids: Sequence[int]) -> CapturedCandidates:
    """Find the likeliest tokens by states (T, C) that tokens (T,) followed; verify them and those on the way."""
    candidates = CapturedCandidates()
    # What the model does to logits, which the lm_head does not.
    shown = recording.transform(job.head)
    why = "" if shown is not None else f"{type(job.model).__name__} changes the logits of its lm_head"
    shown = shown or Transform()
    with torch.no_grad():
        for begin in range(0, len(ids), _LOGIT_ROWS):
            rows = states[begin : begin + _LOGIT_ROWS]
            logits = job.head.module(rows[None])[0]
            made = shown(logits)
            if recording.closed is not None:
                made = made.masked_fill(recording.closed, torch.finfo(made.dtype).min)
            best, _ = candidates.append(made, CANDIDATES)
            given = torch.tensor(list(ids[begin : begin + _LOGIT_ROWS]), device=best.device)
            points = torch.cat([best, given[:, None]], dim=1)
            scored = logits.gather(1, points)
            why = why or verify(job.head, Points(rows, points, scored, scored))
        why = why or recording.verify(job.head)
    if why:
        raise ModelNotSupportedError(f"model: {MISMATCH}: {why}")
    return candidates
