"""Where an answer comes from: what ``generate`` may be given and how it is watched, and answers that are given."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.explain.job import CANDIDATES, Job
from tam_fast.models.capture import CapturedCandidates
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts import visual_mask
from tam_fast.models.logits import Transform
from tam_fast.models.recording import MISMATCH, Points, Recording, record, verify
from tam_fast.models.typed import SpecialTokens, check_special_tokens, check_text, tokenise
from tam_fast.models.wrappers import uncompiled

__all__ = ["Answer", "answer_ids", "end_ids", "force", "generate", "generate_arguments"]

Answer: TypeAlias = "str | Sequence[int] | Tensor"

_MAX_NEW_TOKENS = 128
# Answer positions whose logits are made at a time under teacher forcing: 32 x 151,936 float32 values are 19 MB.
_LOGIT_ROWS = 32

# Arguments of generate() with which there is no one sequence of states, or that are this library's to set.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "assistant_model": "assisted decoding runs another model's states",
        "prompt_lookup_num_tokens": "assisted decoding runs several positions a step",
        "assistant_early_exit": "assisted decoding runs several positions a step",
        "custom_generate": "the decoding loop must be generate()'s own",
        "prefill_chunk_size": "the prompt must be processed in one piece",
        "streamer": "use Explainer.stream()",
        "inputs": "inputs are made of images and prompt",
        "input_ids": "inputs are made of images and prompt",
        "inputs_embeds": "inputs are made of images and prompt",
        "past_key_values": "the prompt must be processed from its beginning",
    }
)


def generate_arguments(model: Any, max_new_tokens: int | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check and complete the arguments of generate()."""
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
    for name in ("num_beams", "num_return_sequences"):
        value = _setting(name, arguments, configurations)
        if value is not None and value != 1:
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
        if hasattr(model.generation_config, "disable_compile"):
            arguments.setdefault("disable_compile", True)
    return arguments


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


def _setting(name: str, arguments: Mapping[str, Any], configurations: Sequence[Any]) -> Any:
    """Look a setting of generate() up in the order in which generate() does; None if it is nowhere."""
    if name in arguments:
        return arguments[name]
    for configuration in configurations:
        value = getattr(configuration, name, None)
        if value is not None:
            return value
    return None


def end_ids(job: Job, arguments: Mapping[str, Any]) -> frozenset[int]:
    """Collect the ids that end an answer."""
    configurations = [arguments.get("generation_config"), getattr(job.model, "generation_config", None)]
    ends: set[int] = set()
    for value in (
        _setting("eos_token_id", arguments, configurations),
        getattr(job.processor.tokenizer, "eos_token_id", None),
    ):
        if value is not None:
            ends.update(int(end) for end in torch.as_tensor(value).flatten().tolist())
    return frozenset(ends)


def generate(job: Job, arguments: dict[str, Any]) -> tuple[list[int], Tensor, CapturedCandidates]:
    """Generate an answer: its ids (T,), the states (P + T - 1, C) and each step's candidates.

    Where the states of ``generate``'s steps cannot be shown to be the answer's, they come from a pass over it
    (:func:`force`), and ``job.source`` says so.
    """
    given = arguments.get("generation_config") is not None  # which may ask for a compiled decoder
    with torch.no_grad(), uncompiled(job.model, always=given), record(job.model, job.head, CANDIDATES) as recording:
        output = job.model.generate(**job.model_inputs(), **arguments)
    sequence = output if isinstance(output, Tensor) else output.sequences
    prompt_length = job.prompt.layout.answer_start
    generated = sequence[0, prompt_length:].tolist()
    ids = _without_end(job, generated, end_ids(job, arguments))
    with torch.no_grad():
        why = _doubt(job, recording, generated, len(ids))
    if why:
        job.source = "teacher_forced"
        try:
            return force(job, ids)
        except ModelNotSupportedError as error:
            raise ModelNotSupportedError(f"{error} (and while it generated: {why})") from error
    return ids, recording.states.hidden[: prompt_length + len(ids) - 1], recording.candidates


def _doubt(job: Job, recording: Recording, generated: Sequence[int], count: int) -> str:
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


def _without_end(job: Job, ids: list[int], ends: frozenset[int]) -> list[int]:
    """Drop the end marks that an answer closes with."""
    count = len(ids)
    while count and ids[count - 1] in ends:
        count -= 1
    if not count:
        names = job.processor.tokenizer.convert_ids_to_tokens(ids)
        raise ValueError(f"answer: expected at least one token before the end mark, got {names}")
    return ids[:count]


def answer_ids(job: Job, answer: Answer, special_tokens: SpecialTokens = "text") -> list[int]:
    """Bring a given answer to token ids (T,); control tokens in a text are text, unless they are to be obeyed."""
    if isinstance(answer, str):
        ids = _tokenise(job, answer, special_tokens)
    else:
        try:
            tensor = torch.as_tensor(answer)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"answer: expected a string or token ids, got {type(answer).__name__}") from error
        if tensor.ndim != 1 or (tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool)):
            raise TypeError(f"answer: expected token ids (T,), got {tuple(tensor.shape)} of {tensor.dtype}")
        ids = [int(token_id) for token_id in tensor.tolist()]
    ids = _without_end(job, ids, end_ids(job, {}))
    rows = job.head.size
    for token_id in ids:
        if not 0 <= token_id < rows:
            raise ValueError(f"answer: expected token ids from 0 to {rows - 1}, got {token_id}")
    if bool(visual_mask(job.model.config, torch.tensor(ids)).any()):
        raise ValueError("answer: expected text, got a placeholder of an image or video")
    return ids


def _tokenise(job: Job, answer: str, special_tokens: SpecialTokens) -> list[int]:
    """Tokenise an answer as the continuation of the prompt."""
    if not answer:
        raise ValueError("answer: expected a text, got an empty string")
    check_text("answer", answer)
    check_special_tokens(special_tokens)
    tokenizer, rendered = job.processor.tokenizer, job.prompt.rendered
    prefix = job.prompt.family.answer_prefix
    tail = answer if not prefix or answer[0].isspace() else prefix + answer
    before = job.prompt.rendered_ids
    # A prompt whose control tokens were obeyed is not text here either.
    spans = rendered.spans if job.prompt.special_tokens == "text" else ()
    end = len(rendered.text)
    whole = tokenise(
        tokenizer,
        rendered.text + tail,
        [*spans, (end, end + len(tail))],
        add_special_tokens=rendered.add_special_tokens,
        special_tokens=special_tokens,
    ).ids
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    # The answer's first characters would join the prompt's last token, which generation cannot do either.
    alone = tokenise(tokenizer, answer, [(0, len(answer))], add_special_tokens=False, special_tokens=special_tokens).ids
    return list(alone)


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
    inputs: dict[str, Any] = dict(job.model_inputs(ids[:-1]))
    with torch.no_grad(), uncompiled(job.model), record(job.model, job.head, CANDIDATES) as recording:
        if "logits_to_keep" in inspect.signature(type(job.model).forward).parameters:
            job.model(**inputs, logits_to_keep=1, **_prompts_end(job))
        else:
            with _last_position(job.head.module):
                job.model(**inputs, **_prompts_end(job))
    if recording.trouble:
        raise ModelNotSupportedError(f"model: {MISMATCH}: {recording.trouble}")
    hidden = recording.states.hidden
    first = job.prompt.layout.answer_start - 1
    if hidden.shape[0] != first + len(ids):
        raise ModelNotSupportedError(
            f"model: expected one state for each of {first + len(ids)} positions, got {hidden.shape[0]} from "
            f"{type(job.model).__name__}"
        )
    candidates = CapturedCandidates()
    # What the model does to logits, which the lm_head does not.
    shown = recording.transform(job.head)
    why = "" if shown is not None else f"{type(job.model).__name__} changes the logits of its lm_head"
    shown = shown or Transform()
    with torch.no_grad():
        for begin in range(0, len(ids), _LOGIT_ROWS):
            rows = hidden[first:][begin : begin + _LOGIT_ROWS]
            logits = job.head.module(rows[None])[0]
            made = shown(logits)
            if recording.closed is not None:
                made = made.masked_fill(recording.closed, torch.finfo(made.dtype).min)
            best, _ = candidates.append(made, CANDIDATES)
            given = torch.tensor(ids[begin : begin + _LOGIT_ROWS], device=best.device)
            points = torch.cat([best, given[:, None]], dim=1)
            scored = logits.gather(1, points)
            why = why or verify(job.head, Points(rows, points, scored, scored))
        why = why or recording.verify(job.head)
    if why:
        raise ModelNotSupportedError(f"model: {MISMATCH}: {why}")
    return ids, hidden, candidates
