"""What the JSON document of ``tam-fast explain`` says of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tam_fast.explanation import Explanation, Grounding, Word

__all__ = ["describe", "peak_of", "thinking_tokens"]


def describe(explanation: Explanation) -> dict[str, Any]:
    """Make the part of the JSON document that is about one explanation."""
    words = explanation.words
    by_word, by_token = _all_groundings(explanation)
    method, _, scale = explanation.method.partition("@")
    found: dict[str, Any] = {
        "model": explanation.model,
        "prompt": explanation.prompt,
        "answer": explanation.text,
        "source": explanation.source,
        "method": method,
        "words": [
            {
                "word": word.text,
                "strength": word.strength,
                "characters": list(word.characters),
                "tokens": [word.start, word.stop],
                "peak": peak_of(explanation, word),
                **by_word[i],
            }
            for i, word in enumerate(words)
        ],
        "tokens": [{**_token(explanation, i), **by_token[i]} for i in range(len(explanation))],
        "grids": _grids(explanation),
        "seconds": explanation.elapsed,
    }
    if method != "tam":
        found["scale"] = scale or "map"
    if explanation.thinking is not None:
        found["thinking"] = {"text": explanation.thinking, "tokens": thinking_tokens(explanation)}
    if explanation.messages is not None:
        found["messages"] = explanation.messages
    if explanation.videos:
        found["videos"] = [{"frames": len(video), "times": video.times} for video in explanation.videos]
    return found


def _token(explanation: Explanation, i: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "token": explanation.tokens[i],
        "id": explanation.token_ids[i],
        "step": explanation.places[i],
        "strength": float(explanation.visual_strength[i]),
        **({"scale": float(explanation.maps.scale[i])} if explanation.method == "tam" else {}),
        "flat": bool(explanation.maps.flat[i]),
        "candidates": [
            {"token": c.token, "id": c.token_id, "probability": c.probability} for c in explanation.candidates[i]
        ],
    }
    contrast = explanation.contrast
    if contrast is not None:
        found["log_probability"] = {
            name: float(getattr(contrast, name)[i]) for name in ("with_images", "without_images")
        }
    return found


def _all_groundings(explanation: Explanation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Say how visual words and tokens are; nothing of maps of other methods, which have no scale for it."""
    if explanation.method != "tam":
        return [{} for _ in explanation.words], [{} for _ in range(len(explanation))]
    grounding = explanation.grounding
    return _groundings(grounding.words(explanation.words)), _groundings(grounding)


def _groundings(grounding: Grounding) -> list[dict[str, Any]]:
    """Say of each token or word whether it is visual, and why."""
    parts, visual = grounding.to_dict(), grounding.visual.tolist()
    return [
        {"visual": visual[i], "grounding": {name: values[i] for name, values in parts.items()}}
        for i in range(len(grounding))
    ]


def _grids(explanation: Explanation) -> list[dict[str, Any]]:
    grids: list[dict[str, Any]] = []
    for grid in explanation.layout.grids:
        found = {"height": grid.height, "width": grid.width, "source": grid.source, "box": list(grid.box)}
        grids.append({**found, "kind": "video", "frame": grid.frame} if grid.kind == "video" else found)
    return grids


def peak_of(explanation: Explanation, word: Word) -> dict[str, Any] | None:
    """Where a word's map is strongest, as cell and as pixel; None for a map of zeros, or without images.

    In a video also the video, the temporal index and its time in seconds.
    """
    if not explanation.layout.grids:
        return None
    peak = explanation.peak(word)
    if peak.value <= 0.0:
        return None
    if peak.video is None:
        sizes = [image.size for image in explanation.images]
    else:
        sizes = [video.frames[0].size for video in explanation.videos]
    pixel = None
    if sizes:
        width, height = sizes[peak.source]
        pixel = [int(min(max(peak.x, 0.0) * width, width - 1)), int(min(max(peak.y, 0.0) * height, height - 1))]
    found = {"grid": peak.grid, "row": peak.row, "column": peak.column, "source": peak.source, "pixel": pixel}
    return found if peak.video is None else {**found, "video": peak.video, "frame": peak.frame, "time": peak.time}


def thinking_tokens(explanation: Explanation) -> int:
    """Count the tokens that spell the thinking section, which are context, or are explained themselves."""
    assert explanation.thinking is not None
    # Of what was generated the context has all before the last explained token.
    last = explanation.places[-1]
    pieces = [*explanation.context_tokens[len(explanation.context_tokens) - last :], explanation.tokens[-1]]
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    begin = "".join(pieces).find(explanation.thinking)
    end = begin + len(explanation.thinking)
    if begin < 0:
        return last
    return sum(starts[k] < end and starts[k + 1] > begin for k in range(len(pieces)))
