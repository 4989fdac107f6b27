"""Where a user's text went in a prompt that a processor expanded: :func:`find_places`.

A chat's tokens are known with their offsets, and so which of them spell the user's text. A processor replaces
placeholders by visual tokens, and most put other tokens around them: marks of beginning and end, line breaks, names of
tiles. Three ways to follow the text there, the first that agrees with the processor's tokens to the last one is taken:

1. Only placeholders were replaced: all other tokens are those of the chat, in order.
2. The processor says by which string it replaced each placeholder (``text_replacement_offsets``): the expanded text is
   tokenised with offsets.
3. The chat's tokens and the prompt's are aligned; every token of the user's text must be found, in one piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import visual_mask
from tam_fast.models.prompts import RenderedPrompt
from tam_fast.models.typed import Tokenised, masked, tokenise, tokens_in_spans

__all__ = ["Places", "find_places", "with_users_texts"]

Places: TypeAlias = Sequence[int]
"""Positions of the users' texts in a prompt, ascending."""


def find_places(
    config: Any,
    processor: Any,
    input_ids: Tensor,
    rendered: RenderedPrompt,
    tokens: Tokenised,
    replaced: Sequence[Mapping[str, Any]] | None,
) -> Places:
    """Find the positions of the users' texts.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
    processor : transformers.ProcessorMixin
    input_ids : (P,) int64
        What the processor made of ``rendered.text``.
    rendered : RenderedPrompt
    tokens : Tokenised
        The tokens of ``rendered.text``, one a placeholder.
    replaced : sequence of mapping, or None
        The processor's ``text_replacement_offsets`` of this prompt.

    Returns
    -------
    sequence of int

    Raises
    ------
    ModelNotSupportedError
        If the text cannot be followed.
    """
    short = _Short.of(config, input_ids)
    places = _only_placeholders(config, input_ids, tokens)
    if places is None and replaced:
        text, spans = _expanded(config, processor, rendered.text, rendered.spans, replaced)
        found = processor.tokenizer(text, add_special_tokens=rendered.add_special_tokens, return_offsets_mapping=True)
        if found["input_ids"] == short.ids:
            places = [short.places[index] for index in tokens_in_spans(found["offset_mapping"], spans)]
    if places is None:
        places = _aligned(config, short, tokens)
    if places is None:
        raise ModelNotSupportedError(
            f"processor: expected {type(processor).__name__} to keep the chat's text as it is around the images, got "
            f"{len(short.ids)} tokens in which the user's {len(tokens.users)} were not found: the prompt's words "
            "cannot be located"
        )
    return places


@dataclass(frozen=True)
class _Short:
    """A prompt with one token for each run of one visual token: its ids, and where each (run) begins."""

    ids: list[int]
    places: list[int]
    ends: list[int]

    @classmethod
    def of(cls, config: Any, input_ids: Tensor) -> _Short:
        mask = visual_mask(config, input_ids)
        again = torch.zeros_like(mask)
        again[1:] = mask[1:] & (input_ids[1:] == input_ids[:-1])
        kept = torch.nonzero(~again).flatten()
        ends = torch.cat([kept[1:], kept.new_tensor([input_ids.numel()])])
        return cls(input_ids[kept].tolist(), kept.tolist(), ends.tolist())


def _only_placeholders(config: Any, input_ids: Tensor, tokens: Tokenised) -> list[int] | None:
    """Take the tokens that are no placeholders for those of the chat; None if they are not the same."""
    ids = torch.tensor(tokens.ids, dtype=torch.int64)
    places = torch.nonzero(~visual_mask(config, input_ids)).flatten()
    kept = torch.nonzero(~visual_mask(config, ids)).flatten()
    if not torch.equal(input_ids[places], ids[kept]):
        return None
    position_of = torch.full_like(ids, -1)
    position_of[kept] = places
    chosen = position_of[list(tokens.users)]
    return [place for place in chosen.tolist() if place >= 0]


def _expanded(
    config: Any,
    processor: Any,
    text: str,
    spans: Sequence[tuple[int, int]],
    replaced: Sequence[Mapping[str, Any]],
) -> tuple[str, list[tuple[int, int]]]:
    """Put what replaced the placeholders into a text, each run of a visual token as one; and where the spans went."""
    shown = [processor.tokenizer.convert_ids_to_tokens(number) for number in {*_visual_ids(config)}]
    pieces: list[str] = []
    moved: list[tuple[int, int]] = []
    place = length = 0
    edges = sorted(spans)
    for item in [*sorted(replaced, key=lambda item: item["span"]), None]:
        start, stop = (len(text), len(text)) if item is None else item["span"]
        moved += [(first - place + length, last - place + length) for first, last in edges if place <= first < start]
        pieces.append(text[place:start])
        length += start - place
        if item is not None:
            short = _without_runs(item["replacement"], shown)
            pieces.append(short)
            length += len(short)
        place = stop
    return "".join(pieces), moved


def _visual_ids(config: Any) -> list[int]:
    from tam_fast.models.layouts.source import token_id

    return [number for kind in ("image", "video") if (number := token_id(config, kind)) is not None]


def _without_runs(text: str, tokens: Sequence[str]) -> str:
    """Leave one of each run of a visual token."""
    for token in tokens:
        parts = text.split(token)
        if len(parts) > 2:
            # Empty parts inside are neighbours.
            kept = [parts[0]]
            for index, part in enumerate(parts[1:], 1):
                if not part and index < len(parts) - 1:
                    continue
                kept.append(part)
            text = token.join(kept)
    return text


def _aligned(config: Any, short: _Short, tokens: Tokenised) -> list[int] | None:
    """Align the chat's tokens with the prompt's; None unless each of the users' tokens is found, in order."""
    chat = list(tokens.ids)
    visual = visual_mask(config, torch.tensor(chat))
    users = [index for index in tokens.users if not visual[index]]
    size = min(len(chat), len(short.ids))
    # From both ends, which is where texts without images between them are; the rest by the longest blocks in common.
    # A processor may append what a text ends in: then not from the end.
    tail = next((k for k in range(size) if chat[-1 - k] != short.ids[-1 - k]), size)
    for last in dict.fromkeys((tail, 0)):
        head = next((k for k in range(size - last) if chat[k] != short.ids[k]), size - last)
        found = {len(chat) - 1 - k: len(short.ids) - 1 - k for k in range(last)} | {k: k for k in range(head)}
        if any(index not in found for index in users):
            inner, outer = chat[head : len(chat) - last], short.ids[head : len(short.ids) - last]
            for block in SequenceMatcher(None, inner, outer, autojunk=False).get_matching_blocks():
                found |= {head + block.a + k: head + block.b + k for k in range(block.size)}
        # A user's text stands in one piece.
        if all(index in found for index in users) and all(
            found[second] - found[first] == 1 for first, second in itertools.pairwise(users) if second == first + 1
        ):
            return [short.places[found[index]] for index in users]
    return None


def with_users_texts(
    config: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    rendered: RenderedPrompt,
    tokens: Tokenised,
    replaced: Sequence[Mapping[str, Any]] | None,
) -> tuple[dict[str, Any], Places]:
    """Put the users' texts into a prompt that was made with one character in place of each.

    Parameters
    ----------
    inputs : mapping
        What the processor made of the masked text.
    others
        As for :func:`find_places`.

    Returns
    -------
    inputs : dict
        With ``input_ids`` and what else has a value for each position lengthened.
    places : sequence of int

    Raises
    ------
    ModelNotSupportedError
        If the text cannot be followed, or what an input has for each position cannot be lengthened.
    """
    tokenizer = processor.tokenizer
    text, _ = masked(rendered.text, rendered.spans)
    spans, shift = [], 0
    for start, stop in rendered.spans:
        spans.append((start - shift, start - shift + 1))
        shift += stop - start - 1
    old_ids = inputs["input_ids"][0]
    found = tokenizer(text, add_special_tokens=rendered.add_special_tokens, return_offsets_mapping=True)
    marks = Tokenised(tuple(found["input_ids"]), tuple(tokens_in_spans(found["offset_mapping"], spans)), False)
    blind = RenderedPrompt(text, tuple(spans), rendered.add_special_tokens)
    held = find_places(config, processor, old_ids, blind, marks, replaced)
    old = _Short.of(config, old_ids)
    new, users = _retokenised(config, processor, rendered, tokens, replaced, old)
    if new is None:
        # Only the characters that stood for the texts are changed.
        new, users = _spliced(old, held, tokens)
    new, users = _shortened(config, new, users)
    marks_at = set(held)
    others = [part for part in zip(old.places, old.ends, strict=True) if part[0] not in marks_at]
    chosen = set(users)
    same = [int(old_ids[first]) for first, _ in others] == [new[k] for k in range(len(new)) if k not in chosen]
    _check_positions(config, processor, inputs, held[0], same)
    if not same:
        # A user's first or last token may have swallowed one of the template's.
        others = _stand_ins(config, processor, new, chosen, old, held[0])
    # Positions (P,) of the old sequence whose values the new one's have: a user's text has those of its mark.
    source: list[int] = []
    ids: list[int] = []
    places: list[int] = []
    order = iter(others)
    for index, number in enumerate(new):
        if index in chosen:
            places.append(len(ids))
        first, last = (held[0], held[0] + 1) if index in chosen else next(order)
        source += range(first, last)
        ids += [number] * (last - first)
    changed = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape == inputs["input_ids"].shape:
            changed[name] = value[:, source]
    changed["input_ids"] = torch.tensor([ids], dtype=inputs["input_ids"].dtype)
    return changed, places


def _check_positions(config: Any, processor: Any, inputs: Mapping[str, Any], anywhere: int, same: bool) -> None:
    """Raise unless what inputs have for each position can be lengthened: kinds of tokens, or one value for all text."""
    texts = ~visual_mask(config, inputs["input_ids"][0])
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.shape != inputs["input_ids"].shape or name == "input_ids":
            continue
        if bool((value[0, texts] != value[0, anywhere]).any()) and not (same and name.endswith("token_type_ids")):
            raise ModelNotSupportedError(
                f"processor: expected {name} (1, P) of {type(processor).__name__} to be the same for all text, got "
                "several values: control tokens in the prompt cannot be kept as text"
            )


def _stand_ins(
    config: Any, processor: Any, new: Sequence[int], users: Collection[int], old: _Short, anywhere: int
) -> list[tuple[int, int]]:
    """Find a stretch of the old sequence for each new token that is no user's: for text, one and the same."""
    visual = set(_visual_ids(config))
    runs = [(old.places[k], old.ends[k]) for k, number in enumerate(old.ids) if number in visual]
    if sum(number in visual for number in new) != len(runs):
        raise ModelNotSupportedError(
            f"processor: expected {len(runs)} runs of placeholders from {type(processor).__name__}, got others with "
            "the user's text: the prompt's words cannot be located"
        )
    order = iter(runs)
    return [
        next(order) if number in visual else (anywhere, anywhere + 1)
        for index, number in enumerate(new)
        if index not in users
    ]


def _shortened(config: Any, ids: Sequence[int], users: Sequence[int]) -> tuple[list[int], list[int]]:
    """Leave one token of each run of one visual token."""
    visual = visual_mask(config, torch.tensor(ids)).tolist()
    kept = [index for index in range(len(ids)) if not (visual[index] and index and ids[index] == ids[index - 1])]
    index_of = {index: place for place, index in enumerate(kept)}
    return [ids[index] for index in kept], [index_of[index] for index in users]


def _retokenised(
    config: Any,
    processor: Any,
    rendered: RenderedPrompt,
    tokens: Tokenised,
    replaced: Sequence[Mapping[str, Any]] | None,
    old: _Short,
) -> tuple[list[int] | None, Sequence[int]]:
    """Tokenise the expanded prompt with the users' texts in it, where the processor does just that."""
    text, _ = masked(rendered.text, rendered.spans)
    plain = processor.tokenizer(text, add_special_tokens=rendered.add_special_tokens)["input_ids"]
    visual = set(_visual_ids(config))
    if [number for number in plain if number not in visual] == [number for number in old.ids if number not in visual]:
        return list(tokens.ids), tokens.users
    if not replaced:
        return None, ()
    # The offsets are those of the masked text.
    blind, _ = _expanded(config, processor, text, (), replaced)
    if processor.tokenizer(blind, add_special_tokens=rendered.add_special_tokens)["input_ids"] != old.ids:
        return None, ()
    moved = []
    for item in replaced:
        start, stop = item["span"]
        shift = sum(last - first - 1 for first, last in rendered.spans if first < start)
        moved.append({**item, "span": (start + shift, stop + shift)})
    whole, spans = _expanded(config, processor, rendered.text, rendered.spans, moved)
    found = tokenise(
        processor.tokenizer,
        whole,
        spans,
        add_special_tokens=rendered.add_special_tokens,
        placeholders=[processor.tokenizer.convert_ids_to_tokens(number) for number in visual],
    )
    return list(found.ids), found.users


def _spliced(old: _Short, held: Places, tokens: Tokenised) -> tuple[list[int], list[int]]:
    """Put the users' tokens where their marks were: one stretch a mark, in order."""
    index_of = {place: index for index, place in enumerate(old.places)}
    marks = _stretches([index_of[place] for place in held])
    texts = _stretches(list(tokens.users))
    if len(marks) != len(texts):
        raise ModelNotSupportedError(
            f"processor: expected {len(texts)} stretches of the user's text, got {len(marks)}: the prompt's words "
            "cannot be located"
        )
    ids: list[int] = []
    users: list[int] = []
    place = 0
    for (start, stop), (first, last) in zip(marks, texts, strict=True):
        ids += old.ids[place:start]
        users += range(len(ids), len(ids) + last - first)
        ids += tokens.ids[first:last]
        place = stop
    return ids + old.ids[place:], users


def _stretches(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Join neighbouring indices to ranges."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges
