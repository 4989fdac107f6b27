"""Users' texts to tokens: control tokens that they typed stay text, and which tokens spell a stretch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tam_fast.models.text import special_token_ids

__all__ = [
    "SpecialTokens",
    "Tokenised",
    "check_special_tokens",
    "check_text",
    "control_tokens",
    "masked",
    "tokenise",
    "tokens_in_spans",
]

SpecialTokens: TypeAlias = Literal["text", "obey"]
"""What becomes of control tokens that a user types: they stay text, or are obeyed."""

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
    stretches : tuple of int
        Which stretch each of `users` spells; the first of two that share a token.
    """

    ids: tuple[int, ...]
    users: tuple[int, ...]
    typed: bool
    stretches: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], typed: bool
    ) -> Tokenised:
        """Find the tokens that spell some stretches of a text by their offsets."""
        users = tokens_in_spans(offsets, spans)
        stretches = tuple(
            next(number for number, span in enumerate(spans) if tokens_in_spans([offsets[index]], [span]))
            for index in users
        )
        return cls(tuple(map(int, ids)), tuple(users), typed, stretches)


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
        placeholders = tuple(placeholders)
        # A vocabulary may have a placeholder as a plain word.
        known = {tokenizer.convert_tokens_to_ids(token): token for token in placeholders}
        unknown = {None, getattr(tokenizer, "unk_token_id", None)}
        controls = {
            **control_tokens(tokenizer),
            **{number: token for number, token in known.items() if number not in unknown},
        }
        without = masked(text, spans)[0]
        if _typed(controls, tokenizer, text, spans, ids, offsets) or any(
            text.count(placeholder) != without.count(placeholder) for placeholder in placeholders
        ):
            return _tokenise_plain(tokenizer, controls, text, spans, add_special_tokens)
    return Tokenised.of(ids, offsets, spans, False)


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
            return Tokenised.of(ids, encoding.offsets, users, True)
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
