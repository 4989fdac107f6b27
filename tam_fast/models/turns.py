"""Which tokens of a prompt the user wrote, told from the token ids alone: :func:`users_positions`.

A chat template and a processor put tokens around a user's text: role marks, placeholders, line breaks, names of tiles.
They are learnt once for each processor by writing out chats of known texts, and found again in a prompt's tokens.
Strings are compared as the vocabulary spells them, so that it does not matter where one token ends and the next begins;
control tokens are single characters in them, which no text has.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.family import Family
from tam_fast.models.layouts.source import visual_mask
from tam_fast.models.prompts import chat_template
from tam_fast.models.typed import control_tokens

__all__ = ["users_positions"]

_CONTROL = 0xF0000  # private-use characters that stand for control tokens
_CONTROLS = re.compile(f"[{chr(_CONTROL)}-{chr(0x10FFFD)}]")
_VISUAL = chr(_CONTROL)
_BYTES = 0xE000  # private-use characters that stand for bytes
_BYTE_NAME = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class _Turn:
    """What stands around a user's text.

    Attributes
    ----------
    header : str
        Before the turn's content.
    first : str
        What stands before the header of a first turn.
    later : str
        What stands between an answer and the header of the turn behind it.
    endings : tuple of str
        Behind it, longest first.
    between : frozenset of str
        Texts between control tokens that processor and template put around images.
    numbered : frozenset of str
        Those of them that count images, such as ``Picture 2:``, with ``#`` for the number.
    lead, trail : str
        What stands between an image and the text that follows it, and between a text and the image that follows it.
    leads : mapping of str to str
        `lead` behind each control character that it was seen behind: an image of one tile may end otherwise.
    crops : str
        `trail` before an image that crops follow.
    """

    header: str = ""
    first: str = ""
    later: str = ""
    endings: tuple[str, ...] = ()
    between: frozenset[str] = frozenset()
    numbered: frozenset[str] = frozenset()
    lead: str = ""
    trail: str = ""
    leads: Mapping[str, str] = field(default_factory=dict)
    crops: str = ""


_turns: WeakKeyDictionary[Any, dict[str, tuple[_Turn, frozenset[int]]]] = WeakKeyDictionary()


def users_positions(config: Any, processor: Any, family: Family, input_ids: Tensor) -> Tensor:
    """Find the tokens that the user wrote in the last turn of a prompt.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
    processor : transformers.ProcessorMixin
        Its chat template, or its tokenizer's, or the family's, says what a turn looks like. Without one, or where the
        prompt was written otherwise, every token that is text counts.
    family : Family
    input_ids : (P,) int64

    Returns
    -------
    (n,) int64
        Positions, ascending: no visual, control or template token.
    """
    turn, controls = _turn(config, processor, family)
    mask = visual_mask(config, input_ids)
    # One token for each run of visual ones.
    kept = torch.nonzero(~(mask & torch.cat([mask.new_zeros(1), mask[:-1]]))).flatten()
    ids = input_ids[kept].tolist()
    pieces = _pieces(processor.tokenizer, ids, mask[kept].tolist(), controls)
    text = "".join(pieces)
    begin, end = 0, len(text)
    for ending in turn.endings:
        if ending and text.endswith(ending):
            end -= len(ending)
            break
    if turn.header:
        begin = _begin(text, end, turn)
    spans = list(_spans(text, begin, end, turn))
    chosen: list[int] = []
    place = 0
    for index, piece in enumerate(pieces):
        stop = place + len(piece)
        if not _CONTROLS.match(piece) and any(place < last and stop > first for first, last in spans):
            chosen.append(index)
        place = stop
    return kept[chosen]


def _begin(text: str, end: int, turn: _Turn) -> int:
    """Find where the last turn's content begins. A header that a user typed is none where another one can be told."""
    place = text.rfind(turn.later + turn.header, 0, end)
    if place >= 0:
        return place + len(turn.later) + len(turn.header)
    place = text.find(turn.header, 0, end)
    # There may be one more mark of the beginning.
    if _CONTROLS.sub("", text[: max(place, 0)]) != _CONTROLS.sub("", turn.first):
        place = text.rfind(turn.header, 0, end)
    return place + len(turn.header) if place >= 0 else 0


def _spans(text: str, begin: int, end: int, turn: _Turn) -> Sequence[tuple[int, int]]:
    """Cut a turn into the stretches of text between control tokens, without what a template puts there."""
    spans = []
    edges = [begin - 1, *(match.start() for match in _CONTROLS.finditer(text, begin, end)), end]
    for before, after in itertools.pairwise(edges):
        first, last = before + 1, after
        if first >= last or text[first:last] in turn.between or _unnumbered(text[first:last]) in turn.numbered:
            continue
        if before >= begin:
            lead = turn.leads.get(text[before], turn.lead)
            first += len(lead) if text.startswith(lead, first) else 0
        for trail in (turn.crops, turn.trail):
            length = _trailing(text[first:last], trail, turn) if after < end else 0
            if length:
                last -= length
                break
        if first < last:
            spans.append((first, last))
    return spans


def _trailing(text: str, trail: str, turn: _Turn) -> int:
    """Count the characters at a text's end that are what a template writes before an image; its number may differ."""
    if not trail or text.endswith(trail):
        return len(trail)
    if _unnumbered(trail) not in turn.numbered:
        return 0
    found = re.search("[0-9]+".join(map(re.escape, re.split("[0-9]+", trail))) + r"\Z", text)
    return len(found[0]) if found else 0


def _pieces(tokenizer: Any, ids: Sequence[int], visual: Sequence[bool], controls: frozenset[int]) -> list[str]:
    """Spell tokens as the vocabulary does; a visual or control token is one private-use character."""
    spelt = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        _VISUAL if seen else chr(_CONTROL + 1 + number % 0xFFF0) if number in controls else _spelt(str(piece))
        for piece, number, seen in zip(spelt, ids, visual, strict=True)
    ]


def _spelt(piece: str) -> str:
    """Make one character of a piece that names a byte, so that pieces differ in whole characters."""
    return chr(_BYTES + int(piece[3:5], 16)) if _BYTE_NAME.fullmatch(piece) else piece


def _turn(config: Any, processor: Any, family: Family) -> tuple[_Turn, frozenset[int]]:
    """Learn a processor's turns, or remember them; with the ids of its control tokens."""
    try:
        template = chat_template(family, processor) or repr(getattr(processor, "chat_template", None))
    except ModelNotSupportedError:
        template = ""
    try:
        known = _turns.setdefault(processor, {})
    except TypeError:  # one of those that cannot be a key
        known = {}
    if template not in known:
        controls = frozenset(control_tokens(processor.tokenizer))
        turn = _learn(config, processor, family, controls) if template else _Turn()
        known[template] = turn, controls
    return known[template]


def _learn(config: Any, processor: Any, family: Family, controls: frozenset[int]) -> _Turn:
    template = chat_template(family, processor)

    def spell(chat: Callable[[str], list[dict[str, Any]]], word: str, generation: bool, images: int, width: int) -> str:
        text = processor.apply_chat_template(
            chat(word), chat_template=template, add_generation_prompt=generation, tokenize=False
        )
        bos = getattr(processor.tokenizer, "bos_token", None)
        add = not (bos and text.startswith(bos))
        if images:
            from PIL import Image

            picture = Image.new("RGB", (width, 64), (127, 127, 127))
            found = processor(images=[picture] * images, text=[text], add_special_tokens=add, return_tensors="pt")
            ids = found["input_ids"][0]
        else:
            ids = torch.tensor(processor.tokenizer(text, add_special_tokens=add)["input_ids"])
        mask = visual_mask(config, ids)
        kept = ~(mask & torch.cat([mask.new_zeros(1), mask[:-1]]))
        return "".join(_pieces(processor.tokenizer, ids[kept].tolist(), mask[kept].tolist(), controls))

    def around(
        chat: Callable[[str], list[dict[str, Any]]], generation: bool = True, images: int = 0, width: int = 96
    ) -> tuple[str, str] | None:
        """Return what stands before and behind a user's text; None if the template cannot write such a chat."""
        try:
            first, second = (spell(chat, word, generation, images, width) for word in _WORDS)
        except Exception:  # templates raise what they like
            return None
        if first == second:
            return None
        before = _common(first, second)
        behind = _common(first[len(before) :][::-1], second[len(before) :][::-1])[::-1]
        return before, behind

    alone = around(lambda word: [_user(word)])
    if alone is None:
        return _Turn()
    again = around(lambda word: [_user("one"), _assistant("two"), _user(word)])
    header = alone[0] if again is None else _common(alone[0][::-1], again[0][::-1])[::-1]
    first = alone[0][: len(alone[0]) - len(header)]
    later = "" if again is None else again[0][again[0].rfind("two") + len("two") : len(again[0]) - len(header)]
    endings = {alone[1]}
    finished = around(lambda word: [_user(word)], generation=False)
    if finished is not None:
        endings.add(finished[1])
    between: set[str] = set()
    lead = trail = ""
    leads: dict[str, str] = {}
    # A square may be one tile where a wide picture is several.
    for count, width in ((1, 64), (1, 96), (2, 96)):
        seen = around(lambda word, count=count: [_user(word, before=count)], True, count, width)  # type: ignore[misc]
        if seen is None:
            continue
        endings.add(seen[1])  # a processor may append something
        place = seen[0].rfind(header)
        parts = _CONTROLS.split(seen[0][place + len(header) :] if header and place >= 0 else seen[0])
        if len(parts) > 1:
            lead = parts[-1]
            leads[_CONTROLS.findall(seen[0])[-1]] = lead
            between.update(part for part in parts[:-1] if part)
    after = around(lambda word: [_user(word, after=1)], images=1)
    if after is not None:
        ending = next((tail for tail in sorted(endings, key=len, reverse=True) if after[1].endswith(tail)), "")
        tail = after[1][: len(after[1]) - len(ending)] if ending else after[1]
        parts = _CONTROLS.split(tail)
        if len(parts) > 1:
            trail = parts[0]
            between.update(part for part in parts[1:] if part)
    between.update(filter(None, (lead, *leads.values())))
    forms = Counter(_unnumbered(part) for part in between)
    numbered = frozenset(form for form, count in forms.items() if count > 1)
    # Words around crops are known, for what a processor is asked for is not.
    words = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in family.crop_words]
    around_crops = ["".join(_pieces(processor.tokenizer, ids, [False] * len(ids), controls)) for ids in words]
    between.update(around_crops)
    ordered = tuple(sorted(endings, key=len, reverse=True))
    crops = around_crops[0] if around_crops else ""
    return _Turn(header, first, later, ordered, frozenset(between), numbered, lead, trail, leads, crops)


_WORDS = ("Qx", "Zw")  # that begin and end differently


def _unnumbered(text: str) -> str:
    return re.sub(r"[0-9]+", "#", text)


def _user(text: str, before: int = 0, after: int = 0) -> dict[str, Any]:
    content = [*({"type": "image"},) * before, {"type": "text", "text": text}, *({"type": "image"},) * after]
    return {"role": "user", "content": content}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _common(first: str, second: str) -> str:
    """Return the longest common beginning."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:place]
    return min(first, second, key=len)
