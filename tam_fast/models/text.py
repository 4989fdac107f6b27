"""Between tokens and characters: users' texts kept as text, answers as they grow, and which tokens spell a stretch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "SpecialTokens",
    "TextDecoder",
    "Tokenised",
    "check_special_tokens",
    "check_text",
    "control_tokens",
    "masked",
    "special_token_ids",
    "token_pieces",
    "tokenise",
    "tokens_in_spans",
]

SpecialTokens: TypeAlias = Literal["text", "obey"]
"""What becomes of control tokens that a user types: they stay text, or are obeyed."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no whole character (yet)
_WINDOW = 32
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))  # characters that stand for nothing
_MARKUP = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


def check_special_tokens(special_tokens: object) -> None:
    """Raise ValueError unless `special_tokens` is ``"text"`` or ``"obey"``."""
    if special_tokens not in ("text", "obey"):
        raise ValueError(f"special_tokens: expected 'text' or 'obey', got {special_tokens!r}")


def check_text(name: str, text: str) -> None:
    """Raise ValueError if a user's text has a lone surrogate, which no tokenizer takes."""
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise ValueError(
                f"{name}: expected text that can be written as UTF-8, got the lone surrogate {character!r} "
                f"at character {index}"
            )


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Collect the ids that decoding with ``skip_special_tokens=True`` leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = (int(token_id) for token_id, token in added.items() if getattr(token, "special", False))
    return frozenset(map(int, tokenizer.all_special_ids)) | frozenset(marked)


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Collect the tokens that mean something other than their letters: special ones, and added ones like ``<tag>``.

    Added words and runs of blanks are none: they are how the tokenizer spells text.
    """
    found = {int(token_id): str(token) for token_id, token in _added_tokens(tokenizer).items()}
    special = special_token_ids(tokenizer)
    for token_id in special - found.keys():
        found[token_id] = str(tokenizer.convert_ids_to_tokens(token_id))
    return {
        token_id: token
        for token_id, token in found.items()
        if token and (token_id in special or _MARKUP.fullmatch(token.strip()))
    }


def _added_tokens(tokenizer: Any) -> dict[int, Any]:
    """Return the added tokens with their flags, by id."""
    return dict(getattr(tokenizer, "added_tokens_decoder", {}))


@dataclass(frozen=True)
class Tokenised:
    """A text's tokens, and those of them that spell users' texts.

    Attributes
    ----------
    ids : tuple of int
    users : tuple of int
        Indices of the users' tokens, ascending.
    typed : bool
        Whether a user's text holds what would be a control token, or a placeholder, were it not text.
    """

    ids: tuple[int, ...]
    users: tuple[int, ...]
    typed: bool


def tokenise(
    tokenizer: Any,
    text: str,
    spans: Sequence[tuple[int, int]],
    *,
    add_special_tokens: bool,
    special_tokens: SpecialTokens = "text",
    placeholders: Iterable[str] = (),
) -> Tokenised:
    """Tokenise a text of which some stretches are users' own: control tokens are obeyed outside them only.

    Where users typed none, the tokens are the tokenizer's own for the whole. Where they did, the text goes through the
    same normaliser, pre-tokenizer and model without added tokens; private-use characters stand for those of the
    template. So a typed ``<|im_end|>`` becomes the tokens that its characters have in any other text.

    Parameters
    ----------
    tokenizer : fast transformers tokenizer
    text : str
    spans : sequence of (start, end)
        The users' stretches.
    add_special_tokens : bool
        Whether the tokenizer adds its own marks, such as the beginning's.
    special_tokens : "text" or "obey"
        With ``"obey"``, control tokens are obeyed everywhere.
    placeholders : iterable of str
        Strings that a processor looks for, which count as control tokens.

    Returns
    -------
    Tokenised

    Raises
    ------
    ValueError
        If the tokenizer knows a control token's very characters as nothing else.
    """
    found = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    if special_tokens == "text" and spans:
        controls = control_tokens(tokenizer)
        without = masked(text, spans)[0]
        if _typed(controls, tokenizer, text, spans, ids, offsets) or any(
            text.count(placeholder) != without.count(placeholder) for placeholder in placeholders
        ):
            return _tokenise_plain(tokenizer, controls, text, spans, add_special_tokens)
    return Tokenised(tuple(map(int, ids)), tuple(tokens_in_spans(offsets, spans)), False)


def masked(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Put one private-use character in place of each stretch; return the text and the character, which is new to it."""
    mask = next(_unused(text))
    pieces, place = [], 0
    for start, end in spans:
        pieces += [text[place:start], mask]
        place = end
    return "".join([*pieces, text[place:]]), mask


def _unused(text: str) -> Iterator[str]:
    """Yield private-use characters that a text does not have."""
    return (chr(code) for code in _PRIVATE if chr(code) not in text)


def _typed(
    controls: dict[int, str],
    tokenizer: Any,
    text: str,
    spans: Sequence[tuple[int, int]],
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> bool:
    """Tell whether a control token's characters lie in one of the stretches."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        if token_id not in controls:
            continue
        shown = text[start:end]
        if token_id == unknown and controls[token_id] not in shown:
            continue  # a character that the vocabulary lacks
        # Some swallow the blanks beside them, which may be a user's.
        first, last = start + len(shown) - len(shown.lstrip()), end - len(shown) + len(shown.rstrip())
        if any(first < stop and last > begin for begin, stop in spans):
            return True
    return False


def _tokenise_plain(
    tokenizer: Any, controls: dict[int, str], text: str, spans: Sequence[tuple[int, int]], add_special_tokens: bool
) -> Tokenised:
    """Tokenise with nothing but the template's own control tokens."""
    from tokenizers import AddedToken

    without, mask = masked(text, spans)
    found = tokenizer(without, add_special_tokens=False, return_offsets_mapping=True)
    unknown = getattr(tokenizer, "unk_token_id", None)
    unused = _unused(text + mask)
    marks: dict[int, str] = {}
    pieces: list[str] = []
    place = 0
    for token_id, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        if token_id in controls and end > start and (token_id != unknown or controls[token_id] in without[start:end]):
            mark = marks.setdefault(token_id, next(unused) if token_id not in marks else "")
            pieces += [without[place:start], mark]
            place = end
    pieces.append(without[place:])
    # The users' texts back in their places.
    head, *rest = "".join(pieces).split(mask)
    whole, users = head, []
    for (start, end), part in zip(spans, rest, strict=True):
        users.append((len(whole), len(whole) + end - start))
        whole += text[start:end] + part
    names = {mark: token_id for token_id, mark in marks.items()}
    words = [token for token_id, token in _added_tokens(tokenizer).items() if token_id not in controls]
    names |= {str(token): int(token_id) for token_id, token in _added_tokens(tokenizer).items() if token in words}
    for cut in (False, True):
        twin = _twin(tokenizer.backend_tokenizer, controls.values() if cut else ())
        twin.add_tokens(words)
        twin.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks.values()])
        encoding = twin.encode(whole, add_special_tokens=add_special_tokens)
        ids = [names.get(token, int(number)) for token, number in zip(encoding.tokens, encoding.ids, strict=True)]
        if not _typed(controls, tokenizer, whole, users, ids, encoding.offsets):
            return Tokenised(tuple(ids), tuple(tokens_in_spans(encoding.offsets, users)), True)
    held = sorted({token for token in controls.values() if any(token in text[start:end] for start, end in spans)})
    raise ValueError(
        f"special_tokens: expected control tokens that can be spelt in other tokens, got {held} of "
        f"{type(tokenizer).__name__}, which cannot: leave them out of the text, or use special_tokens='obey'"
    )


def _twin(raw: Any, cut: Iterable[str]) -> Any:
    """Build a tokenizer of the same parts without added tokens; with `cut`, strings whose first character is apart."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.pre_tokenizers import Sequence as InTurn
    from tokenizers.pre_tokenizers import Split

    twin: Any = Tokenizer(raw.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        part = getattr(raw, name)
        if part is not None:
            setattr(twin, name, part)
    strings = {string for token in cut for string in (token, token.replace(" ", "▁")) if len(string) > 1}
    if strings:
        # Where a vocabulary has control tokens among its pieces, its model finds them as such.
        pattern = "|".join(f"{re.escape(string[0])}(?={re.escape(string[1:])})" for string in sorted(strings))
        split = Split(Regex(pattern), "isolated")
        twin.pre_tokenizer = split if raw.pre_tokenizer is None else InTurn([raw.pre_tokenizer, split])
    return twin


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that byte-level tokenizers write for bytes: printable ones for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + index): byte for index, byte in enumerate(others)}}


_BYTE_OF = _byte_alphabet()
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _decoders(tokenizer: Any) -> set[str]:
    """Name the kinds of decoders that a fast tokenizer is made of."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in state.get("decoders", [state])}


class _Utf8:
    """Decode bytes as they come; each longest beginning of a character that has no end makes one U+FFFD."""

    def __init__(self) -> None:
        self._held = b""
        self._missing = 0
        self._next = (0x80, 0xBF)  # the least and the greatest byte that may follow

    @property
    def waits(self) -> bool:
        """Whether the last bytes are the beginning of a character."""
        return bool(self._held)

    def append(self, data: bytes) -> str:
        return "".join(map(self._append, data))

    def _append(self, byte: int) -> str:
        broken = ""
        if self._held:
            if self._next[0] <= byte <= self._next[1]:
                self._held += bytes([byte])
                self._missing -= 1
                self._next = (0x80, 0xBF)
                return "" if self._missing else self._take()
            self._held, broken = b"", _REPLACEMENT
        if byte < 0x80:
            return broken + chr(byte)
        if not 0xC2 <= byte <= 0xF4:
            return broken + _REPLACEMENT
        self._held, self._missing = bytes([byte]), 1 + (byte >= 0xE0) + (byte >= 0xF0)
        # Longer spellings than needed, surrogates, and what is beyond the last character.
        self._next = ({0xE0: 0xA0, 0xF0: 0x90}.get(byte, 0x80), {0xED: 0x9F, 0xF4: 0x8F}.get(byte, 0xBF))
        return broken

    def _take(self) -> str:
        character, self._held = self._held.decode("utf-8"), b""
        return character


def _ranges(tokens: Sequence[bytes], together: bool) -> tuple[list[tuple[int, int]], int]:
    """Find the characters of each token's bytes; tokens that share one share their range. And how many there are.

    With `together`, bytes that are not valid as a whole make one U+FFFD each.
    """
    if together and not _is_valid(b"".join(tokens)):
        return [(index, index + 1) for index in range(len(tokens))], len(tokens)
    ranges: list[tuple[int, int]] = []
    utf8, count = _Utf8(), 0
    for data in tokens:
        places = []
        for byte in data:
            count += len(utf8.append(bytes([byte])))
            places.append(count if utf8.waits else count - 1)
        first, last = (places[0], places[-1] + 1) if places else (count, count)
        shared = len(ranges)
        while shared and ranges[shared - 1][1] > first:
            shared -= 1
            first = min(first, ranges[shared][0])
        ranges[shared:] = [(first, last)] * (len(ranges) - shared + 1)
    return ranges, count + utf8.waits


def _is_valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _common(before: str, after: str) -> int:
    """Count the leading characters that two texts share."""
    if after.startswith(before):
        return len(before)
    pairs = enumerate(zip(before, after, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(before), len(after)))


class TextDecoder:
    """Decode a growing sequence of tokens, and say which characters each of them spells.

    The text is at any time what the tokenizer decodes the tokens to, without special ones. Only the last tokens are
    decoded again at each step, so that the cost is linear in the length; a run of tokens of single bytes (``<0xE4>``)
    is decoded as one, since a stray byte in it spoils all of it.

    Parameters
    ----------
    tokenizer : transformers tokenizer

    Attributes
    ----------
    text : str
        The decoded tokens, without special ones. Bytes at the end that are no whole character yet show as U+FFFD.
    pieces : list of str
        What each token adds to the text, with its leading space; the name of a special token.
    offsets : list of (int, int)
        Each token's characters in `text`. Tokens that share a character share its range; a special token's is empty.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_token_ids(tokenizer)
        decoders = _decoders(tokenizer)
        self._level = "ByteLevel" in decoders
        self._fallback = not self._level and "ByteFallback" in decoders
        self._window: list[int] = []  # the last tokens whose text stands
        self._shown = ""  # the window, decoded
        self._base = 0  # where the window's text begins in the whole; negative if its first token lost a space
        self._run: list[tuple[int, int, bytes]] = []  # index, id and bytes of tokens whose text the next may change
        self._grown = ""  # window and run, decoded
        self._utf8 = _Utf8()
        self.text = ""
        self.pieces: list[str] = []
        self._offsets: list[tuple[int, int]] = []
        self._start = 0  # where the run's text begins
        self._shared = True  # whether the run's tokens have their offsets

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Each token's characters in `text`."""
        self._share()
        return self._offsets

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _name(self, token_id: int) -> str | None:
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        return name if isinstance(name, str) else None

    def _bytes(self, name: str) -> bytes:
        """Return the bytes that a token stands for; none if it stands for characters."""
        if self._level:
            if all(character in _BYTE_OF for character in name):
                return bytes(_BYTE_OF[character] for character in name)
            return name.encode("utf-8")
        match = _BYTE_NAME.fullmatch(name) if self._fallback else None
        return bytes([int(match[1], 16)]) if match else b""

    def _goes_on(self, data: bytes) -> bool:
        """Tell whether a token with these bytes may change the text of the run."""
        if self._level:
            return self._utf8.waits
        return bool(data and self._run and self._run[-1][2])

    def peek(self, token_id: int) -> str:
        """Return the piece that a token would be if it came next."""
        name = self._name(token_id)
        if token_id in self._special or name is None:
            return self._silent(token_id, name)
        data = self._bytes(name)
        return self._piece(token_id, data, self._extended(token_id), copy(self._utf8))

    def _silent(self, token_id: int, name: str | None) -> str:
        """Name a token that adds nothing to the text; one beyond the vocabulary has no name."""
        if token_id in self._special:
            return name if name is not None else f"<{token_id}>"
        return ""

    def _extended(self, token_id: int) -> str:
        """Decode window and run with one more token."""
        return self._decode([*self._window, *(other for _, other, _ in self._run), token_id])

    def _piece(self, token_id: int, data: bytes, grown: str, utf8: _Utf8) -> str:
        goes_on = self._goes_on(data)
        made = utf8.append(data)
        if self._fallback and data:
            piece = "" if utf8.waits or len(made) != 1 else made
        else:
            piece = grown[_common(self._shown if goes_on else self._grown, grown) :]
            if self._level and piece.endswith(_REPLACEMENT):
                piece = ""
        return piece or self._decode([token_id])

    def append(self, token_id: int) -> str:
        """Add the next token; return its piece."""
        index, end = len(self._offsets), len(self.text)
        name = self._name(token_id)
        if token_id in self._special or name is None:
            self.pieces.append(self._silent(token_id, name))
            self._offsets.append((end, end))
            return self.pieces[-1]
        data = self._bytes(name)
        if not self._goes_on(data):
            self._settle()
        grown = self._extended(token_id)
        piece = self._piece(token_id, data, grown, copy(self._utf8))
        self._utf8.append(data)
        self._run.append((index, token_id, data))
        self._grown = grown
        common = _common(self._shown, grown)
        self._start = self._base + common
        self.text = self.text[: self._start] + grown[common:]
        self.pieces.append(piece)
        self._offsets.append((self._start, self._start))
        self._shared = False
        return piece

    def _settle(self) -> None:
        """Take the run into the window: what follows does not change its text."""
        self._share()
        self._window += [token_id for _, token_id, _ in self._run]
        self._run.clear()
        self._shown = self._grown
        if len(self._window) > 2 * _WINDOW:
            self._window = self._window[-_WINDOW:]
            self._shown = self._decode(self._window)
            self._base = len(self.text) - len(self._shown)
        self._grown = self._shown
        self._utf8 = _Utf8()

    def _share(self) -> None:
        """Give the tokens of the run their characters of the text."""
        if self._shared:
            return
        self._shared = True
        start, end, first_index = self._start, len(self.text), self._run[0][0]
        # Text that a decoder changes afterwards: the tokens before keep what is left of theirs.
        for index in range(first_index - 1, -1, -1):
            first, last = self._offsets[index]
            if last <= start:
                break
            self._offsets[index] = (min(first, start), min(last, start))
        if self._run[0][2]:
            ranges, count = _ranges([data for _, _, data in self._run], self._fallback)
        else:
            ranges, count = [(0, end - start)], end - start
        shift = end - start - count  # a leading space that decoding drops
        places = dict(zip((index for index, _, _ in self._run), ranges, strict=True))
        silent = end
        for index in range(len(self._offsets) - 1, first_index - 1, -1):
            if index in places:
                first, last = (start + max(place + shift, 0) for place in places[index])
                self._offsets[index] = (first, last)
                silent = first
            else:
                self._offsets[index] = (silent, silent)


def token_pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Decode each token of a sequence to the piece it adds, with its leading space."""
    decoder = TextDecoder(tokenizer)
    for token_id in token_ids:
        decoder.append(int(token_id))
    return decoder.pieces


def tokens_in_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Find the tokens that spell any character of some stretches of a text.

    Parameters
    ----------
    offsets : sequence of (start, end)
        Characters of each token, as fast tokenizers report them.
    spans : sequence of (start, end)
        The stretches.

    Returns
    -------
    list of int
        Indices of tokens, ascending. A token of white space whose range was trimmed to nothing belongs to the stretch
        that its end lies in.
    """
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if any((start < last and end > first) if end > start else first < start <= last for first, last in spans)
    ]
