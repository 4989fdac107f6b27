"""From tokens to characters: the text of an answer as it grows, and which of its characters each token spells."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import copy
from typing import Any

__all__ = ["TextDecoder", "special_token_ids", "token_pieces"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no whole character (yet)
_WINDOW = 32


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Collect the ids that decoding with ``skip_special_tokens=True`` leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = (int(token_id) for token_id, token in added.items() if getattr(token, "special", False))
    return frozenset(map(int, tokenizer.all_special_ids)) | frozenset(marked)


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
