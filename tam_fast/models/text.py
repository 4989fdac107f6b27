"""Between tokens and characters: pieces of an answer as they grow, and which tokens spell a stretch of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextDecoder", "special_token_ids", "token_pieces", "tokens_in_spans"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no whole character (yet)
_BYTES = 4  # of the longest character
_WINDOW = 32


def _common(before: str, after: str) -> int:
    """Count the leading characters that two texts share."""
    if after.startswith(before):
        return len(before)
    pairs = enumerate(zip(before, after, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(before), len(after)))


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Collect the ids that decoding with ``skip_special_tokens=True`` leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = (int(token_id) for token_id, token in added.items() if getattr(token, "special", False))
    return frozenset(map(int, tokenizer.all_special_ids)) | frozenset(marked)


class TextDecoder:
    """Decode a growing sequence of tokens, and say which characters each of them spells.

    Only the last tokens are decoded again at each step, so that the cost is linear in the length.

    Parameters
    ----------
    tokenizer : transformers tokenizer

    Attributes
    ----------
    pieces : list of str
        What each token adds to the text, with its leading space; the name of a special token.
    offsets : list of (int, int)
        Each token's characters in `text`. Tokens that share a character share its range; a special token's is empty.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_token_ids(tokenizer)
        self._text = ""
        self._window: list[int] = []
        self._shown = ""  # the window, decoded
        self._base = 0  # where the window's text begins in the whole; negative if its first token lost a space
        self._pending: list[tuple[int, int]] = []  # index and id of tokens whose bytes are no whole character yet
        self.pieces: list[str] = []
        self.offsets: list[tuple[int, int]] = []

    @property
    def text(self) -> str:
        """The decoded tokens, without special ones; bytes at the end that are no whole character yet are one U+FFFD."""
        return self._text + _REPLACEMENT if self._pending else self._text

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def peek(self, token_id: int) -> str:
        """Return the piece that a token would be if it came next."""
        if token_id in self._special:
            name = self._tokenizer.convert_ids_to_tokens(token_id)
            return name if isinstance(name, str) else f"<{token_id}>"
        return self._piece(token_id, self._grown(token_id))

    def _grown(self, token_id: int) -> str:
        """Decode the window with one more token."""
        return self._decode([*self._window, *(pending for _, pending in self._pending), token_id])

    def _piece(self, token_id: int, grown: str) -> str:
        piece = grown[_common(self._shown, grown) :]
        return self._decode([token_id]) if piece.endswith(_REPLACEMENT) or not piece else piece

    def append(self, token_id: int) -> str:
        """Add the next token; return its piece."""
        index, end = len(self.offsets), len(self._text)
        if token_id in self._special:
            self.pieces.append(self.peek(token_id))
            self.offsets.append((end, end))
            return self.pieces[-1]
        grown = self._grown(token_id)
        piece = self._piece(token_id, grown)
        self.pieces.append(piece)
        self._pending.append((index, token_id))
        if grown.endswith(_REPLACEMENT) and len(self._pending) < _BYTES:
            self.offsets.append((end, end + 1))
            return piece
        common = _common(self._shown, grown)
        added = grown[common:]
        start = self._base + common
        self._text = self._text[:start] + added
        self.offsets.append((start, len(self._text)))
        self._share(start, added)
        self._window += [pending for _, pending in self._pending]
        self._pending.clear()
        self._shown = grown
        if len(self._window) > 2 * _WINDOW:
            self._window = self._window[-_WINDOW:]
            self._shown = self._decode(self._window)
            self._base = len(self._text) - len(self._shown)
        return piece

    def _share(self, start: int, added: str) -> None:
        """Give the pending tokens, the newest included, their characters of the text added from `start`."""
        end = start + len(added)
        # Text that stray bytes change afterwards: the tokens before keep what is left of theirs.
        for index in range(self._pending[0][0] - 1, -1, -1):
            first, last = self.offsets[index]
            if last <= start:
                break
            self.offsets[index] = (min(first, end), min(last, end))
        broken = len(added) - len(added.lstrip(_REPLACEMENT))
        count = len(self._pending)
        for place, (index, _) in enumerate(self._pending):
            if broken == count == len(added):
                self.offsets[index] = (start + place, start + place + 1)
            elif 0 < broken < len(added):
                # Bytes that never became a character, then the newest token's text.
                middle = start + broken
                self.offsets[index] = (middle, end) if place == count - 1 else (start, middle)
            else:
                self.offsets[index] = (start, end)


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
