"""What an answer is: where it ends, and the tokens of one that is given."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.explain.job import Job
from tam_fast.models.layouts import visual_mask
from tam_fast.models.text import TextDecoder
from tam_fast.models.thinking import MARKS, closed, is_open, written_out
from tam_fast.models.typed import SpecialTokens, check_special_tokens, check_text, tokenise

__all__ = ["Answer", "answer_ids", "check_spans", "end_ids", "setting_of", "whole_answer", "without_end"]

Answer: TypeAlias = "str | Sequence[int] | Tensor"


def setting_of(name: str, arguments: Mapping[str, Any], configurations: Sequence[Any]) -> Any:
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
        setting_of("eos_token_id", arguments, configurations),
        getattr(job.processor.tokenizer, "eos_token_id", None),
    ):
        if value is not None:
            ends.update(int(end) for end in torch.as_tensor(value).flatten().tolist())
    return frozenset(ends)


def without_end(job: Job, ids: list[int], ends: frozenset[int]) -> list[int]:
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
    ids = without_end(job, ids, end_ids(job, {}))
    rows = job.head.size
    for token_id in ids:
        if not 0 <= token_id < rows:
            raise ValueError(f"answer: expected token ids from 0 to {rows - 1}, got {token_id}")
    if bool(visual_mask(job.model.config, torch.tensor(ids)).any()):
        raise ValueError("answer: expected text, got a placeholder of an image or video")
    return ids


def whole_answer(job: Job, answer: str) -> str:
    """Complete an answer by its thinking section: what was kept apart, or the end of one that the prompt began."""
    opened = is_open(job.prompt_end())
    if job.chat.reasoning and answer == job.chat.answer:
        return written_out(job.chat.reasoning, answer, job.processor, opened)
    if opened and not any(closing in answer for _, closing in MARKS):
        return f"{closed(job.processor)}{answer}"
    return answer


def check_spans(job: Job, answer: str, ids: Sequence[int], targets: Sequence[object]) -> None:
    """Refuse spans of characters of an answer that its tokens spell otherwise: they would name other characters."""
    if not any(isinstance(target, tuple) for target in targets):
        return
    decoder = TextDecoder(job.processor.tokenizer)
    for token_id in ids:
        decoder.append(int(token_id))
    if decoder.text != answer:
        raise ValueError(
            f"targets: expected (start, end) of an answer as its tokens spell it, {decoder.text[:200]!r}, got those of "
            f"{answer[:200]!r}: give the answer in that form (Unicode's NFC)"
        )


def _tokenise(job: Job, answer: str, special_tokens: SpecialTokens) -> list[int]:
    """Tokenise an answer as the continuation of the prompt."""
    if not answer:
        raise ValueError("answer: expected a text, got an empty string")
    check_text("answer", answer)
    check_special_tokens(special_tokens)
    tokenizer, rendered = job.processor.tokenizer, job.prompt.rendered
    prefix = job.prompt.family.answer_prefix
    # Where the beginning of the answer was given, it has been said already.
    tail = answer if not prefix or answer[0].isspace() or job.chat.prefix else prefix + answer
    before = job.prompt.rendered_ids
    # A prompt whose control tokens were obeyed is not text here either.
    spans = rendered.spans if job.prompt.special_tokens == "text" else ()
    end = len(rendered.text)
    whole = tokenise(
        tokenizer,
        rendered.text + tail,
        [*spans, *((end + start, end + stop) for start, stop in _texts(tokenizer, tail))],
        add_special_tokens=rendered.add_special_tokens,
        special_tokens=special_tokens,
    ).ids
    if whole[: len(before)] == before:
        ids = list(whole[len(before) :])
    else:
        # The answer's first characters would join the prompt's last token, which generation cannot do either.
        texts = _texts(tokenizer, answer)
        ids = list(tokenise(tokenizer, answer, texts, add_special_tokens=False, special_tokens=special_tokens).ids)
    if special_tokens == "text":
        _check_spelling(tokenizer, answer, ids)
    return ids


def _marks(tokenizer: Any) -> list[str]:
    """List the marks of thinking sections that the tokenizer has as tokens: in an answer they are what they say."""
    unknown = {None, getattr(tokenizer, "unk_token_id", None)}
    every = [mark.strip() for pair in MARKS for mark in pair]
    return [mark for mark in every if tokenizer.convert_tokens_to_ids(mark) not in unknown]


def _texts(tokenizer: Any, answer: str) -> list[tuple[int, int]]:
    """Find the stretches of an answer between marks of thinking sections."""
    marks = _marks(tokenizer)
    places = [match.span() for match in re.finditer("|".join(map(re.escape, marks)), answer)] if marks else []
    edges = [0, *(edge for place in places for edge in place), len(answer)]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def _check_spelling(tokenizer: Any, answer: str, ids: Sequence[int]) -> None:
    """Refuse an answer that its tokens do not spell, but for white space and Unicode's forms."""

    def letters(text: str) -> str:
        for mark in _marks(tokenizer):
            text = text.replace(mark, "")
        return "".join(unicodedata.normalize("NFKC", text).split())

    decoder = TextDecoder(tokenizer)
    for token_id in ids:
        decoder.append(int(token_id))
    if letters(decoder.text) != letters(answer):
        raise ValueError(
            f"answer: expected a text that {type(tokenizer).__name__} spells, got {answer[:200]!r}, whose tokens read "
            f"{decoder.text[:200]!r}"
        )
