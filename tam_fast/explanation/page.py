"""An explanation, or several, as what an HTML page shows: :func:`page_of`, :func:`page_text`."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tam_fast.explanation.pictures import Pictures
from tam_fast.explanation.reading import Reading
from tam_fast.explanation.replacing import check_replaceable, replace_files
from tam_fast.maps.packing import pack
from tam_fast.render.jpeg import encode
from tam_fast.render.page import Column, PageData, Panel, Run, Section, Still, Unit, page

__all__ = ["SUFFIXES", "check_path", "embedded", "page_of", "page_text", "save_page"]

SUFFIXES = (".html", ".htm")
"""How the name of a page ends."""

_Key = tuple[str, int, int]  # "image" or "video", its number, the temporal index
_REPLACED = "\ufffd"
_SHEET = 256  # tokens at most in the picture of a notebook


def page_of(
    explanations: Sequence[Reading],
    *,
    title: str | None = None,
    titles: Sequence[str] | None = None,
    rows: Sequence[Sequence[int | None]] = (),
    cmap: str = "inferno",
) -> PageData:
    """Gather what a page shows of explanations, one a column.

    Parameters
    ----------
    explanations : sequence of Explanation
        Of the same images and videos: the first explanation that holds a picture gives it.
    title : str, optional
        Above the page; the first explanation's prompt if not given.
    titles : sequence of str, optional
        The columns'; the models' names if not given.
    rows : sequence of sequences of (int or None)
        Words that belong together: for each column an index into its ``words``.
    cmap : str
        See :func:`tam_fast.render.colormap`.

    Returns
    -------
    PageData
        A column's units begin with its words, in order, so that `rows` are rows of units as well.

    Raises
    ------
    ValueError
        If there is no explanation, or not one title each.
    """
    if not explanations:
        raise ValueError("explanations: expected at least one, got none")
    names = [e.model for e in explanations] if titles is None else list(titles)
    if len(names) != len(explanations):
        raise ValueError(f"titles: expected one for each of {len(explanations)} explanations, got {len(names)}")
    stills: dict[_Key, Still] = {}
    for e in explanations:
        for key, still in _stills(e):
            if key not in stills or (stills[key].image is None and still.image is not None):
                stills[key] = still
    places = {key: number for number, key in enumerate(sorted(stills))}
    columns = [_column(e, name, places) for e, name in zip(explanations, names, strict=True)]
    head = title or " ".join(explanations[0].prompt.split()) or "Where the model saw each word"
    return PageData(head, [stills[key] for key in places], columns, rows, cmap)


def page_text(explanation: Reading, *, title: str | None = None, cmap: str = "inferno") -> str:
    """Write the page of one explanation as HTML."""
    return page(page_of([explanation], title=title, cmap=cmap))


def check_path(path: str | os.PathLike[str], force: bool = False) -> Path:
    """Return the path of a page's file, if one may be written there.

    Raises
    ------
    ValueError
        If the file's name is none of a page.
    OSError
        FileExistsError if another program's file would be replaced.
    """
    place = Path(path)
    if place.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path: expected a name that ends in .html, got {str(path)!r}")
    try:
        check_replaceable([place], force)
    except FileExistsError as error:
        advice = "" if force else ", or force=True"
        raise FileExistsError(
            f"path: expected one that is free or an earlier page's, got one where {error}; give another{advice}"
        ) from error
    return place


def save_page(path: str | os.PathLike[str], text: str, force: bool = False) -> Path:
    """Write a page to its file: beside it, synced, then renamed.

    Raises
    ------
    ValueError, OSError
        As :func:`check_path`; OSError as well if it cannot be written.
    """
    place = check_path(path, force)
    replace_files({place: text.encode("utf-8")})
    return place


def embedded(explanation: Pictures) -> str:
    """Write an explanation as a notebook's output: its page, in a frame that may run its scripts and nothing else.

    Below it comes the sheet of all tokens as a picture, closed up, for where frames are taken out or scripts do not
    run; of more than 256 tokens there is none.
    """
    from markupsafe import escape

    frame = (
        f'<iframe srcdoc="{escape(page_text(explanation))}" sandbox="allow-scripts" width="100%" height="720" '
        'title="Token activation maps" frameborder="0"></iframe>'
    )
    if len(explanation) > _SHEET or not (explanation.images or explanation.videos):
        return frame
    sheet = base64.b64encode(encode(explanation.sheet(width=1100), 400_000)).decode()
    picture = f'<img alt="Every token over the image" src="data:image/jpeg;base64,{sheet}">'
    return f"{frame}<details><summary>All words as one picture</summary>{picture}</details>"


def _stills(e: Reading) -> Iterable[tuple[_Key, Still]]:
    """List the pictures of an explanation: its images, then a frame for each temporal index of its videos."""
    count = max([len(e.images), *(canvas.source + 1 for canvas in e._canvases if canvas.frame is None)])
    shapes = {(canvas.source, canvas.frame): canvas.shape for canvas in e._canvases}
    for number in range(count):
        picture = e.images[number] if number < len(e.images) else None
        height, width = shapes.get((number, None), (1, 1))
        size = (width, height) if picture is None else picture.size
        yield ("image", number, 0), Still(picture, size, f"Image {number + 1}" if count > 1 else "Image")
    videos = 1 + max((canvas.source for canvas in e._canvases if canvas.frame is not None), default=-1)
    for number in range(videos):
        canvases = e._video(number)
        for canvas in canvases:
            frame = canvas.frame or 0
            shown = e._shown(number, frame)
            picture = None if shown is None else e.videos[number].frames[shown[0]]
            time = e._time(number, frame)
            label = f"Frame {frame}" if time is None else f"{time:.2f} s"
            label = label if videos == 1 else f"Video {number + 1}, {label}"
            size = (canvas.width, canvas.height) if picture is None else picture.size
            yield ("video", number, frame), Still(picture, size, label, number)


def _column(e: Reading, title: str, stills: Mapping[_Key, int]) -> Column:
    panels, parts = [], []
    for canvas in e._canvases:
        key = ("image", canvas.source, 0) if canvas.frame is None else ("video", canvas.source, canvas.frame)
        panels.append(Panel(stills[key], canvas.height, canvas.width, canvas.box))
        parts.append(torch.nan_to_num(canvas.join(e.maps.maps), nan=0.0).clamp(0.0, 1.0).flatten(1).cpu())
    maps = pack(torch.cat(parts, dim=1) if parts else torch.zeros(len(e), 0))
    prompt = len(e.context_tokens) - (e.places[-1] if e.places else 0)
    places = [prompt + step for step in e.places]
    relevance = pack(torch.nan_to_num(e.relevance.float(), nan=0.0).clamp(0.0, 1.0).cpu())
    reach = [min(place, len(e.context_tokens)) for place in places]
    rows = [row[:count] for row, count in zip(relevance.levels, reach, strict=True)]
    units, owners = _units(e)
    return Column(
        title=title,
        note=_note(e),
        sections=_sections(e, prompt, owners),
        units=units,
        tokens=e.tokens,
        places=places,
        panels=panels,
        levels=maps.levels.numpy(),
        peaks=maps.scale.numpy(),
        relevance=(torch.cat(rows) if rows else torch.zeros(0, dtype=torch.uint8)).numpy(),
        reliance=relevance.scale.numpy(),
        reach=reach,
        candidates=[[(c.token, c.probability) for c in step] for step in e.candidates],
        flat=e.maps.flat.tolist(),
        scores=e.grounding.score.tolist() if e.method == "tam" else None,
    )


def _note(e: Reading) -> str:
    sizes = dict.fromkeys(f"{canvas.height}×{canvas.width}" for canvas in e._canvases)
    cells = f"{', '.join(list(sizes)[:4])} cells" if sizes else "no images"
    method = [] if e.method == "tam" else [f"maps of {e.method}"]
    return " · ".join([*method, f"{len(e)} tokens", cells])


def _units(e: Reading) -> tuple[list[Unit], dict[int, int]]:
    """List the words, then the tokens that belong to none; and which unit each token without a word has."""
    units = [Unit(word.text, word.start, word.stop) for word in e.words]
    in_word = {token for word in e.words for token in range(word.start, word.stop)}
    owners: dict[int, int] = {}
    before: tuple[int, int] | None = None
    for token, place in enumerate(e.offsets):
        if token in in_word:
            before = None
            continue
        # Pieces of one character, such as an emoji's bytes, are one.
        if place == before and place[0] < place[1]:
            last = units[-1]
            units[-1] = Unit(last.text, last.start, token + 1, is_word=False)
        else:
            text = (
                e.text[slice(*place)].strip() or e.tokens[token].strip() or ("space" if place[0] < place[1] else "end")
            )
            units.append(Unit(text, token, token + 1, is_word=False))
        owners[token] = len(units) - 1
        before = place
    return units, owners


def _sections(e: Reading, prompt: int, owners: Mapping[int, int]) -> list[Section]:
    """Lay out what was asked, what was thought, and the answer."""
    generated = e.context_tokens[prompt:]
    sections = _asked(e, e.context_tokens[:prompt])
    first = e.places[0] if e.places else 0
    thought = 0
    if e.thinking and e.thinking.strip() and e.thinking.strip() != e.text.strip():
        runs, thought = _thinking(e.thinking, generated[:first], prompt)
        sections.append(Section("thinking", runs))
    answer = _answer(e, prompt, generated, thought, owners)
    return [*sections, Section("assistant", answer)]


def _asked(e: Reading, pieces: Sequence[str]) -> list[Section]:
    """Lay out the conversation, or the prompt, with the places of the context's pieces in it."""
    # Role, text, media.
    turns = [(str(message.get("role", "user")), *_contents(message.get("content"))) for message in e.messages or []]
    if not turns:
        counts = [(len(e.images), "image"), (len(e.videos), "video")]
        media = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count)
        turns = [("user", e.prompt, media)]
    # The context is the conversation's end: the last turns that hold all of it.
    for start in reversed(range(len(turns))):
        text = "".join(text for _, text, _ in turns[start:])
        spans = _spans(pieces, text)
        if spans is None:
            continue
        sections = [Section(role, [Run(said)] if said else [], media) for role, said, media in turns[:start]]
        place = 0
        for role, said, media in turns[start:]:
            end = place + len(said)
            sections.append(Section(role, _runs(text, spans, place, end, 0), media))
            place = end
        return sections
    # Text that was not what was asked, such as a template's: the pieces speak for themselves.
    sections = [Section(role, [Run(said)] if said else [], media) for role, said, media in turns if not pieces or said]
    return (
        [*sections, Section("context", [Run(piece, place) for place, piece in enumerate(pieces)])]
        if pieces
        else sections
    )


def _contents(content: Any) -> tuple[str, str]:
    """Return a message's text and what else it brings."""
    if isinstance(content, str):
        return content, ""
    parts = [part for part in content or [] if isinstance(part, Mapping)]
    text = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    media = [str(part.get("type", "")) for part in parts if part.get("type") != "text"]
    counts = {name: media.count(name) for name in dict.fromkeys(media)}
    return text, ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items())


def _thinking(text: str, pieces: Sequence[str], prompt: int) -> tuple[list[Run], int]:
    """Lay out a thinking section; return it and how many of the pieces it and its marks take."""
    joined = "".join(pieces)
    start = joined.find(text)
    if start < 0:
        return [Run(text)], 0
    runs, place, taken = [], 0, 0
    for number, piece in enumerate(pieces):
        first, last = max(place, start), min(place + len(piece), start + len(text))
        if first < last:
            runs.append(Run(joined[first:last], prompt + number))
            taken = number + 1
        place += len(piece)
    return runs, taken


def _answer(e: Reading, prompt: int, generated: Sequence[str], thought: int, owners: Mapping[int, int]) -> list[Run]:
    """Cut the answer where tokens and words begin and end."""
    words = [(*word.characters, number) for number, word in enumerate(e.words)]
    runs: list[Run] = []
    place, step, word = 0, thought, 0
    for token, ((start, end), at) in enumerate(zip(e.offsets, e.places, strict=True)):
        if start > place:
            runs += _gap(e.text[place:start], generated[step:at], prompt + step)
            place = start
        step = at + 1
        if start == end:
            runs.append(Run("", prompt + at, owners.get(token)))
            continue
        while place < end:
            while word < len(words) and words[word][1] <= place:
                word += 1
            inside = word < len(words) and words[word][0] <= place
            border = words[word][1 if inside else 0] if word < len(words) else end
            stop = min(end, border)
            runs += _run(e.text[place:stop], prompt + at, words[word][2] if inside else owners.get(token))
            place = stop
    if place < len(e.text):
        runs += _gap(e.text[place:], generated[step:], prompt + step)
    return runs


def _run(text: str, place: int, unit: int | None) -> list[Run]:
    """Make the run of a piece, the space before it apart: it has no colour."""
    bare = text.lstrip()
    space = text[: len(text) - len(bare)]
    if not bare:
        return [Run(text, place, unit)] if unit is not None else [Run(text)]
    return [*([Run(space)] if space else []), Run(bare, place, unit)]


def _gap(text: str, pieces: Sequence[str], first: int) -> list[Run]:
    """Lay out text that was generated, but not explained."""
    spans = _spans(pieces, text)
    # Marks before the text, such as the end of thinking, are pieces that it does not show.
    while spans is None and pieces:
        pieces, first = pieces[1:], first + 1
        spans = _spans(pieces, text)
    return [Run(text)] if not spans else _runs(text, spans, 0, len(text), first)


def _runs(text: str, spans: Sequence[tuple[int, int]], start: int, end: int, first: int) -> list[Run]:
    """Cut characters start..end at the pieces' spans, which ascend; piece 0 is at place `first`."""
    runs: list[Run] = []
    place = start
    for number, (left, right) in enumerate(spans):
        left, right = max(left, place), min(right, end)
        if left >= right:
            continue
        if left > place:
            runs.append(Run(text[place:left]))
        runs.append(Run(text[left:right], first + number))
        place = right
    return [*runs, Run(text[place:end])] if place < end else runs


def _spans(pieces: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Find the characters of each piece in a text that they spell but for white space; None if they do not.

    Pieces of one character (such as bytes of an emoji, which cannot be read alone) share its span: the first has it.
    """
    spans: list[tuple[int, int]] = []
    place, waiting = 0, False
    for piece in pieces:
        core = piece.strip()
        if _REPLACED in core:
            spans.append((place, place))
            waiting = True
            continue
        if not core:
            spans.append((place, place))
            continue
        found = text.find(core, place)
        if found < 0 or (text[place:found].strip() and not waiting):
            return None
        if waiting:
            _share(spans, place, found)
        spans.append((found, found + len(core)))
        place, waiting = found + len(core), False
    if waiting:
        _share(spans, place, len(text))
        return spans
    return None if text[place:].strip() else spans


def _share(spans: list[tuple[int, int]], start: int, end: int) -> None:
    """Give the characters between two pieces to the first of those that wait for them."""
    for number, span in enumerate(spans):
        if span == (start, start):
            spans[number] = (start, end)
            return
