"""The result of an explanation: :class:`Explanation` answers questions about it and draws it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tam_fast.explanation import files, page
from tam_fast.explanation.checks import SOURCES
from tam_fast.explanation.exports import Exports
from tam_fast.explanation.graph import Graph, graph_of
from tam_fast.explanation.kept import KeptStates, one_token
from tam_fast.explanation.naming import Key
from tam_fast.explanation.reading import Maps, Peak
from tam_fast.explanation.words import Word

__all__ = ["SOURCES", "Explanation", "Peak", "load"]


class Explanation(Exports):
    """An answer, and for each of its tokens where in the image the model saw it.

    ``e["circle"]`` is the map of a word, ``e[3]`` that of a token, ``e[2:5]`` or ``e.span(2, 5)`` that of a span.

    Parameters
    ----------
    tokens : list of T str
        The answer's decoded pieces, with leading spaces.
    token_ids : list of T int
    text : str
        The answer as a reader sees it.
    offsets : list of T (int, int)
        Each token's characters in `text`, start and end. Empty for a token that shows nothing, such as the end mark;
        pieces of one character share its range.
    maps : TokenActivationMaps
        The maps (T, N) in [0, 1], the context's relevance (T, K), and the layout.
    candidates : list of T lists of Candidate
        The likeliest tokens of each step, most probable first (three of them, from ``Explainer.explain``). A step's
        list may be empty.
    images : list of PIL images
        The sources, RGB, in the order of ``Grid.source``. May be empty: then nothing can be drawn, but on videos.
    prompt : str
    context_tokens : list of K str
        What :attr:`relevance` is about: the pieces of the prompt's text, and of all that was generated before the last
        explained token, n_p + steps[-1] of them. Row t has values for the first n_p + steps[t] alone.
    model : str
        The model's name.
    elapsed : dict of str to float
        Seconds by stage, as far as they were measured.
    source : str
        Where the states come from: ``"generated"`` (the steps of ``generate``), ``"teacher_forced"`` (a pass over the
        generated answer, because its steps could not be shown to be the answer's), ``"given"`` (a pass over an answer
        that was given) or ``"states"`` (made elsewhere).
    states : KeptStates, optional
        The final hidden states, where they were kept (``keep_states=True``): :meth:`what_if` and :meth:`difference`
        need them.
    steps : list of T int, optional
        Place of each token in what was generated, ascending, where only some of it was explained: an answer without the
        thinking section before it, or some words. None: 0 to T - 1.
    videos : list of Frames
        The sources of grids of kind ``"video"``, in the order of ``Grid.source`` among these. May be empty.
    thinking : str, optional
        The thinking section that came before the answer, without its marks.
    contrast : Contrast, optional
        Log-probabilities of the tokens with and without the images, where they were asked for
        (``grounding="contrast"``).
    messages : list of dict, optional
        The conversation as it was asked, images and videos without their data; None for a plain prompt.
    method : str
        Whose maps these are: ``"tam"``, or what was asked for in its place (``"attn_lrp"``, ``"cam+eci"``), with the
        scale behind ``@`` where it is not each map's own (``"cam@answer"``). The relevance is TAM's all the same.

    Raises
    ------
    TypeError, ValueError
        If the lengths do not agree with the maps, or an offset lies outside the text.

    Notes
    -----
    Of a prompt that was explained itself (``targets="prompt"``) the tokens are its words, and the context those before
    each. A text without images has maps of no cells: ``e[key]`` is an empty list, and the strengths are 0.

    A map over one image is one (H, W) tensor: that of its grid, or where it has several (tiles, crops, an overview) all
    of them joined on one raster, see :meth:`tam_fast.Layout.canvas`. Over several images, or frames of a video, it is a
    list of such tensors. :meth:`grid` gives the map on one grid, :meth:`vector` (N,) over all cells.

    The map of several tokens is the elementwise maximum of theirs: a cell counts for a word if it counts for one of its
    pieces. A mean would fade the piece that names the object with those that only complete the spelling. NaN (possible
    with ``compat="official"`` alone) is passed over where another token has a number, and drawn as 0.
    """

    def what_if(self, step: int | str | Word, token: int | str, *, classifier: torch.Tensor | None = None) -> Maps:
        """Return the map of a token that was not said, as if it stood at one step of the answer.

        What the model had read and written until then stays; no forward pass is made. For the token that was said it is
        its own map.

        Parameters
        ----------
        step : int, str or Word
            Which token of the explanation it stands in place of: an index, negative ones counting from the end, or a
            word of one token.
        token : int or str
            An id, or the text of one token, with or without its leading space.
        classifier : (V, C) Tensor, optional
            The lm_head's weight, for an explanation that was loaded: it has the rows of the answer's tokens, of the
            prompt's and of the candidates alone.

        Returns
        -------
        (H, W) float32, or a list of them
            As ``e[step]``.

        Raises
        ------
        ValueError
            If the states were not kept, the step is of several tokens, or the text is not that of one token.
        IndexError, TypeError, KeyError
            If there is no such step, `token` is neither, or its row of the classifier is not there.
        """
        states = self._kept(classifier)
        at = self._one("step", step)
        number = self._token_id(at, token, "token", classifier)
        return self._rasters(states.maps(self.places[at], [number])[0])

    def difference(
        self,
        first: Key,
        second: Key,
        step: int | str | Word | None = None,
        *,
        classifier: torch.Tensor | None = None,
    ) -> Maps:
        """Return the map of one token, word or span less that of another, on one scale.

        Each token's map is normalised on its own (Eq. 3 of the TAM paper), so that two maps say where, but not which is
        stronger. Here both are what Eq. 3 normalises, filtered, in the units of the logits: computed anew in float64
        from the states that were kept, and divided by the largest value that Eq. 3 found for either of the two, in the
        images or the text. Where the smallest value was 0, as it nearly always is, a map times its own largest value
        gives the same.

        Parameters
        ----------
        first, second : int, str, slice, (int, int) or Word
            As for :meth:`vector`. With `step` two tokens, as for :meth:`what_if`.
        step : int, str or Word, optional
            Which token of the explanation both stand in place of, as for :meth:`what_if`: why this one and not that?
        classifier : (V, C) Tensor, optional
            As for :meth:`what_if`.

        Returns
        -------
        (H, W) float32, or a list of them
            As ``e[first]``, in [-1, 1]: positive where `first` is stronger. Zeros if there is no evidence for either.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`vector` and :meth:`what_if`; ValueError if the states were not kept.
        """
        states = self._kept(classifier)
        sides: list[tuple[torch.Tensor, torch.Tensor]] = []
        if step is None:
            for key in (first, second):
                start, stop = self._tokens(key)
                found = [states.evidence(self.places[token], [self.token_ids[token]]) for token in range(start, stop)]
                sides.append((torch.cat([maps for maps, _ in found]), torch.cat([highest for _, highest in found])))
        else:
            at = self._one("step", step)
            numbers = [
                self._token_id(at, token, name, classifier) for name, token in (("first", first), ("second", second))
            ]
            maps, highest = states.evidence(self.places[at], numbers)
            sides = [(maps[side : side + 1], highest[side : side + 1]) for side in (0, 1)]
        scale = torch.stack([highest.max() for _, highest in sides]).max()
        vectors = [maps.amax(dim=0) for maps, _ in sides]
        change = vectors[0] - vectors[1]
        return self._rasters((change / scale if scale > 0 else change).float())

    def _kept(self, classifier: torch.Tensor | None) -> KeptStates:
        """Return the states, with other rows of a classifier if one is given."""
        if self.states is None:
            raise ValueError("states: expected an explanation that keeps them, got none: explain(keep_states=True)")
        return self.states if classifier is None else replace(self.states, rows=classifier.__getitem__)

    def _token_id(self, at: int, token: Any, name: str, classifier: torch.Tensor | None) -> int:
        """Find the id of a token that is named by id or text."""
        assert self.states is not None
        known = [(c.token, c.token_id) for c in self.candidates[at]]
        number = one_token(token, [*known, *zip(self.tokens, self.token_ids, strict=True)], self.states.tokenizer, name)
        if classifier is not None and not 0 <= number < classifier.shape[0]:
            raise ValueError(f"{name}: expected an id from 0 to {classifier.shape[0] - 1}, got {number}")
        return number

    def graph(self, top: int = 3) -> Graph:
        """Say what each token of the answer rests on: its strongest context tokens and where in the images.

        Parameters
        ----------
        top : int
            Context tokens a token at most.

        Returns
        -------
        Graph
            A list of edges (from, to, attributes), JSON-able and as networkx takes it. Text alone has edges of kind
            ``"text"`` only.
        """
        return graph_of(self, self._canvases, top)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> tuple[Path, Path]:
        """Write the explanation to two files: ``<path>.safetensors`` (arrays, images) and ``<path>.json`` (the rest).

        The two appear together or not at all: they are written beside, synced and renamed, so that a full disk or an
        interruption leaves what was there before. Files of an earlier ``save`` are replaced, other files are not. The
        images are kept without loss (as PNG), so the pair is all that :func:`load` needs.

        Parameters
        ----------
        path : path
            Where; a suffix ``.safetensors`` or ``.json`` is taken off first. Its folder must exist. A name too long
            for the folder is shortened, in the same way by :func:`load`.
        force : bool
            Replace files of these names even if something else wrote them.

        Returns
        -------
        tuple of 2 paths
            The two files.

        Raises
        ------
        OSError
            If they cannot be written; FileExistsError if a file would be replaced that ``save`` did not write.
        ValueError
            If it holds what no explanation has, and :func:`load` would refuse: a map beyond [0, 1], a relevance, scale,
            probability or time that is not finite, `token_ids` that are not those of the maps, offsets out of order.
        """
        return files.write(path, self, force)

    def save_html(
        self, path: str | os.PathLike[str], *, title: str | None = None, cmap: str = "inferno", force: bool = False
    ) -> Path:
        """Write one HTML file to hand around: the pictures, the texts, and the map of a word that is pointed at.

        It needs no network, and may not use one. Pictures are JPEG of at most 1,440 pixels, without what else their
        files held; a video is its frames. Maps are rounded to 1/255 of their own largest value.

        Parameters
        ----------
        path : path
            Ends in ``.html``. Its folder must exist. An earlier page is replaced, another file is not.
        title : str, optional
            Of the page; the prompt if not given.
        cmap : str
            The colour map at first, as for :meth:`overlay`. On the page inferno, viridis and jet can be chosen as well.
        force : bool
            Replace a file of this name even if something else wrote it.

        Returns
        -------
        path
            The file.

        Raises
        ------
        ValueError
            If the path has another suffix, or the colour map is unknown.
        OSError
            If it cannot be written; FileExistsError if a file would be replaced that is no page of this library.
        """
        page.check_path(path, force)
        return page.save_page(path, page.page_text(self, title=title, cmap=cmap), force)

    def _repr_html_(self) -> str:
        """Show the page in a notebook, and below it, for where scripts do not run, the sheet of all tokens."""
        return page.embedded(self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read an explanation that :meth:`save` wrote. The same as :func:`tam_fast.load`."""
        return load(path)


def load(path: str | os.PathLike[str]) -> Explanation:
    """Read an explanation that :meth:`Explanation.save` wrote.

    Nothing in the files is executed: they are JSON and safetensors, and everything in them is checked: shapes, ranges,
    and token ids, offsets and positions against each other.

    Parameters
    ----------
    path : path
        What was given to ``save``: either of the two files, or their common path without suffix.

    Returns
    -------
    Explanation
        Equal to the saved one in every field, bit for bit.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    ValueError
        If a file is damaged, was written by something else or does not belong to the other; names the file and the
        reason. An image of more than ``2 * PIL.Image.MAX_IMAGE_PIXELS`` pixels is refused as well.
    """
    return files.read(path, Explanation)
