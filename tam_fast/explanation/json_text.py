"""JSON within a text, each value with its place: :func:`scan` reads one value, :func:`find_json` looks in prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["JSONTextError", "Node", "find_json", "scan"]

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CHUNK = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# As json of the standard library reads them.
_LITERALS: dict[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}
_OPENING = re.compile(r"[{\[]")
_DEEPEST = 100  # a text of brackets alone is no document


class JSONTextError(ValueError):
    """What stands there is no JSON; `at` is the character, `is_deep` whether it is nested too deep."""

    def __init__(self, expected: str, at: int, is_deep: bool = False) -> None:
        super().__init__(f"expected {expected} at character {at}")
        self.at, self.is_deep = at, is_deep


class _CutOff(Exception):
    """The text ends within a value."""


@dataclass
class Node:
    """One value of a document.

    Attributes
    ----------
    start, end : int
        Its characters in the text, quotes and brackets included.
    value : object
        As ``json.loads`` gives it.
    children : dict of str, or of int, to Node
        Of an object by key (of equal keys the last), of a list by index; else empty.
    is_whole : bool
        Whether it is closed: False where the text ends within it.
    is_quoted : bool
        Whether it is a text in quotes.
    """

    start: int
    end: int
    value: Any
    children: dict[Any, Node] = field(default_factory=dict)
    is_whole: bool = True
    is_quoted: bool = False


def scan(text: str, start: int = 0, *, cut: bool = False) -> Node:
    """Read the JSON value that begins at a character.

    Parameters
    ----------
    text : str
    start : int
        White space before the value is passed over; what follows it is not looked at.
    cut : bool
        Take what there is of a value within which the text ends: objects and lists without what is missing, a text or
        number as far as it stands. Half a key, word or escape is left out.

    Returns
    -------
    Node

    Raises
    ------
    JSONTextError
        If there is none, by the rules of ``json.loads``, or it is nested more than 100 deep.
    """
    reader = _Reader(text)
    try:
        node = reader.value(_skip(text, start), 0)
    except _CutOff:
        node = None
    if node is None or (not node.is_whole and not cut):
        raise JSONTextError("a whole value", len(text))
    return node


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()


class _Reader:
    """Reads values; one within which the text ends comes back with `is_whole` False, or as _CutOff if it is nothing."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, at: int, depth: int) -> Node:
        text = self._text
        if at >= len(text):
            raise _CutOff
        character = text[at]
        if character in "{[":
            if depth >= _DEEPEST:
                raise JSONTextError(f"at most {_DEEPEST} levels", at, is_deep=True)
            return self._container(at, depth, character == "{")
        if character == '"':
            return self._string(at)
        for literal, value in _LITERALS.items():
            if text.startswith(literal, at):
                return Node(at, at + len(literal), value)
        rest = text[at : at + 9]
        if at + len(rest) == len(text) and any(literal.startswith(rest) for literal in _LITERALS):
            raise _CutOff
        return self._number(at)

    def _container(self, at: int, depth: int, is_object: bool) -> Node:
        text = self._text
        node = Node(at, at + 1, {} if is_object else [])
        closing = "}" if is_object else "]"
        place = _skip(text, at + 1)
        if text.startswith(closing, place):
            node.end = place + 1
            return node
        try:
            while True:
                key: Any = len(node.children)
                if is_object:
                    key, place = self._key(place)
                child = self.value(place, depth + 1)
                node.children[key] = child
                node.end = child.end
                if not child.is_whole:
                    raise _CutOff
                place = _skip(text, child.end)
                if text.startswith(closing, place):
                    node.end = place + 1
                    break
                if place >= len(text):
                    raise _CutOff
                if text[place] != ",":
                    raise JSONTextError(f"',' or '{closing}'", place)
                place = _skip(text, place + 1)
        except _CutOff:
            node.is_whole = False
        values = {key: child.value for key, child in node.children.items()}
        node.value = values if is_object else list(values.values())
        return node

    def _key(self, place: int) -> tuple[str, int]:
        """Read a key and its colon; return where the value begins."""
        text = self._text
        if place >= len(text):
            raise _CutOff
        if text[place] != '"':
            raise JSONTextError("a key in double quotes", place)
        key = self._string(place)
        place = _skip(text, key.end)
        if not key.is_whole or place >= len(text):
            raise _CutOff
        if text[place] != ":":
            raise JSONTextError("':'", place)
        return key.value, _skip(text, place + 1)

    def _string(self, at: int) -> Node:
        text = self._text
        pieces: list[str] = []
        place = at + 1
        while True:
            found = _CHUNK.match(text, place)
            assert found is not None
            pieces.append(found.group())
            place = found.end()
            if place >= len(text):
                return Node(at, place, "".join(pieces), is_whole=False, is_quoted=True)
            if text[place] == '"':
                return Node(at, place + 1, "".join(pieces), is_quoted=True)
            if text[place] != "\\":
                raise JSONTextError("no control character in a text", place)
            escape = self._escape(place)
            if escape is None:
                return Node(at, place, "".join(pieces), is_whole=False, is_quoted=True)
            pieces.append(escape[0])
            place = escape[1]

    def _escape(self, at: int) -> tuple[str, int] | None:
        """Read an escape; return its character and where it ends, None where the text ends within it."""
        text = self._text
        if at + 1 >= len(text):
            return None
        name = text[at + 1]
        if name in _ESCAPES:
            return _ESCAPES[name], at + 2
        if name != "u":
            raise JSONTextError("an escape of JSON", at)
        code = self._code(at + 2)
        if code is None:
            return None
        if 0xD800 <= code < 0xDC00 and text.startswith("\\u", at + 6) and (found := _HEX.match(text, at + 8)):
            low = int(found.group(), 16)
            if 0xDC00 <= low < 0xE000:
                return chr(0x10000 + ((code - 0xD800) << 10) + low - 0xDC00), at + 12
        return chr(code), at + 6

    def _code(self, at: int) -> int | None:
        found = _HEX.match(self._text, at)
        if found:
            return int(found.group(), 16)
        rest = self._text[at : at + 4]
        if len(rest) < 4 and re.fullmatch(r"[0-9a-fA-F]*", rest):
            return None
        raise JSONTextError("four hexadecimal digits", at)

    def _number(self, at: int) -> Node:
        text = self._text
        found = _NUMBER.match(text, at)
        if not found:
            raise JSONTextError("a value", at)
        whole, fraction, exponent = found.groups()
        try:
            value = float(found.group()) if fraction or exponent else int(whole)
        except ValueError as error:  # Python's limit of digits
            raise JSONTextError("a number of fewer digits", at) from error
        # "1." and "1e" at the text's end are numbers that go on.
        rest = text[found.end() :]
        is_whole = not rest or not re.fullmatch(r"\.|[eE][-+]?", rest)
        return Node(at, found.end(), value, is_whole=is_whole)


def find_json(text: str) -> Node | None:
    """Find the JSON of an answer: alone, in a fence, or amid prose, also where it breaks off at the text's end.

    Returns
    -------
    Node or None
        The object or list over the most characters, the first of several; None if there is none, or a bracket alone.
    """
    found = list(_documents(text))
    return max(found, key=lambda node: node.end - node.start, default=None)


def _documents(text: str) -> Iterator[Node]:
    place = 0
    while True:
        match = _OPENING.search(text, place)
        if not match:
            return
        try:
            node = scan(text, match.start(), cut=True)
        except JSONTextError as error:
            # Values that were closed before may be documents; but brackets without end would be read again and again.
            place = error.at if error.is_deep else match.end()
            continue
        if node.children or node.is_whole:
            yield node
        place = node.end
