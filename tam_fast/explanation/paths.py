"""Values of an answer by their path: the answer's JSON, or boxes that stand in marks of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tam_fast.explanation.json_text import Node, find_json

__all__ = ["Field", "document_of", "fields_at", "paths_of"]

_Step: TypeAlias = "str | int | None"  # a key, an index, or None for all of them

_NAME = re.compile(r"[^.\[\]'\"*\s][^.\[\]'\"*]*")
_INDEX = re.compile(r"\[\s*(-?[0-9]+|\*)\s*\]")
_QUOTED = re.compile(r"""\[\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*\]""", re.DOTALL)
_PLAIN = re.compile(r"[^\W\d]\w*")

_REF = re.compile(r"(?:<\|object_ref_start\|>|<ref>)(.*?)(?:<\|object_ref_end\|>|</ref>)", re.DOTALL)
_MARKED = re.compile(r"(?:<\|box_start\|>|<box>)(.*?)(?:<\|box_end\|>|</box>|$)", re.DOTALL)
_BARE = re.compile(r"\(\s*\d+\s*,\s*\d+\s*\)\s*,\s*\(\s*\d+\s*,\s*\d+\s*\)")
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Field:
    """A value of an answer, and where it is spelt.

    Attributes
    ----------
    path : str
        From the root, such as ``$.objects[0].box``.
    start, end : int
        Characters: of a text what stands between its quotes, of coordinates the first number to the last, of all else
        the whole value.
    value : object
        As ``json.loads`` gives it.
    """

    path: str
    start: int
    end: int
    value: Any


def document_of(text: str) -> Node | None:
    """Find what paths lead into: the answer's JSON, or else its boxes as ``[{"ref": ..., "box": [...]}, ...]``.

    Boxes are known by ``<box>`` or ``<|box_start|>`` around them, or as ``(x0,y0),(x1,y1)`` where these marks are not
    shown; what they belong to by ``<ref>`` or ``<|object_ref_start|>`` before them.
    """
    found = find_json(text)
    # InternVL writes <box>[[...]]</box>, whose inside is JSON.
    marked = (match.span(1) for match in _MARKED.finditer(text))
    if found and not any(start <= found.start and found.end <= end for start, end in marked):
        return found
    return _boxes(text)


def _boxes(text: str) -> Node | None:
    places: list[tuple[int, int]] = [match.span(1) for match in _MARKED.finditer(text)]
    if not places:
        places = [match.span() for match in _BARE.finditer(text)]
    refs = list(_REF.finditer(text))
    entries: list[Node] = []
    for start, end in places:
        numbers = [_number(match) for match in _DIGITS.finditer(text, start, end)]
        size = 4 if len(numbers) % 4 == 0 else len(numbers)
        for first in range(0, len(numbers), size):
            some = numbers[first : first + size]
            box = Node(some[0].start, some[-1].end, [n.value for n in some], dict(enumerate(some)))
            children = {"box": box}
            before = [ref for ref in refs if ref.end() <= start]
            if before:
                name = before[-1].span(1)
                children = {"ref": Node(*name, text[slice(*name)]), "box": box}
            values = {key: child.value for key, child in children.items()}
            entries.append(Node(next(iter(children.values())).start, box.end, values, children))
    if not entries:
        return None
    return Node(entries[0].start, entries[-1].end, [entry.value for entry in entries], dict(enumerate(entries)))


def _number(match: re.Match[str]) -> Node:
    return Node(*match.span(), float(match.group()) if "." in match.group() else int(match.group()))


def _steps_of(path: str) -> list[_Step]:
    """Split a path into keys and indices.

    Raises
    ------
    TypeError, ValueError
        If it is none of ``$``, ``.key``, ``['key']``, ``[0]``, ``[*]`` and ``.*`` in a row.
    """
    if not isinstance(path, str):
        raise TypeError(f"path: expected a text such as $.objects[0].box, got {type(path).__name__}")
    if not path:
        raise ValueError("path: expected one such as $.objects[0].box, got an empty text")
    place = 1 if path.startswith("$") else 0
    steps: list[_Step] = []
    while place < len(path):
        if found := _INDEX.match(path, place):
            steps.append(None if found.group(1) == "*" else int(found.group(1)))
        elif found := _QUOTED.match(path, place):
            steps.append(re.sub(r"\\(.)", r"\1", found.group(1) or found.group(2) or "", flags=re.DOTALL))
        else:
            dot = path[place] == "."
            if path.startswith("*", place + dot) and (dot or place == 0):
                steps.append(None)
                place += dot + 1
                continue
            found = _NAME.match(path, place + dot)
            if not found or not (dot or place == 0):
                raise ValueError(
                    f"path: expected one such as $.objects[0].box, $['a key'] or $.objects[*].label, got {path!r} "
                    f"(character {place})"
                )
            steps.append(found.group())
        place = found.end()
    return steps


def fields_at(document: Node, path: str) -> list[Field]:
    """Find the values that a path leads to.

    Parameters
    ----------
    document : Node
        As :func:`document_of` finds it.
    path : str
        JSONPath: ``$`` (may be left out), keys, indices (negative ones count from the end), ``[*]`` and ``.*``.

    Returns
    -------
    list of Field
        In the order of the text; empty if it leads nowhere.

    Raises
    ------
    TypeError, ValueError
        If it is no path.
    """
    found = [("$", document)]
    for step in _steps_of(path):
        found = [pair for name, node in found for pair in _down(name, node, step)]
    return [_field(name, node) for name, node in found]


def _down(name: str, node: Node, step: _Step) -> Iterator[tuple[str, Node]]:
    for key, child in node.children.items():
        if step is None or step == key or (isinstance(key, int) and step == key - len(node.children)):
            yield name + _spelt(key), child


def _spelt(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    if _PLAIN.fullmatch(key):
        return f".{key}"
    return "['" + key.replace("\\", "\\\\").replace("'", "\\'") + "']"


def _field(name: str, node: Node) -> Field:
    if node.is_quoted and node.value:
        return Field(name, node.start + 1, node.end - int(node.is_whole), node.value)
    numbers = _coordinates(node)
    if numbers:
        return Field(name, numbers[0].start, numbers[-1].end, node.value)
    return Field(name, node.start, node.end, node.value)


def _coordinates(node: Node) -> Sequence[Node]:
    """List the numbers of a list that holds nothing else, also in lists; empty if it is none."""
    if not isinstance(node.value, list):
        return []
    numbers: list[Node] = []
    for child in node.children.values():
        is_number = isinstance(child.value, (int, float)) and not isinstance(child.value, bool)
        below = [child] if is_number else _coordinates(child)
        if not below:
            return []
        numbers += below
    return numbers


def paths_of(document: Node) -> list[str]:
    """List the paths of all values of a document, in its order; a list of numbers has one, its numbers none."""
    paths: list[str] = []
    todo = [("$", document)]
    while todo:
        name, node = todo.pop()
        paths.append(name)
        if not _coordinates(node):
            todo += [(name + _spelt(key), child) for key, child in reversed(node.children.items())]
    return paths
