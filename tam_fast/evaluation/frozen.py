"""Answers that are made once, and that all methods explain: :func:`freeze`, :class:`Frozen`.

A folder has ``manifest.json`` (of what, by what and how they were made) and ``answers.jsonl``, a line an item, appended
and flushed to the disk one by one: whatever ends a run loses at most the answer at hand, and the next run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tam_fast.dataset.durable import append_line
from tam_fast.dataset.manifest import differences
from tam_fast.evaluation.data.item import chosen, count_of
from tam_fast.evaluation.data.prompts import prompt_of
from tam_fast.evaluation.frozen_files import (
    MANIFEST,
    Answer,
    file_name,
    held,
    new_manifest,
    only_writer,
    read_answers,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from PIL import Image

    from tam_fast.evaluation.data.item import Item, Reader
    from tam_fast.explain.explainer import Explainer

__all__ = ["Answer", "Frozen", "freeze", "load_frozen"]

_PROMPT = "Describe this image."
_PACKAGES = ("tam-fast", "torch", "transformers", "tokenizers", "numpy", "pillow")
_TEXT = 400  # characters of an error that are kept


class Frozen(Mapping[str, Answer]):
    """The answers in a folder, by the item's id; in the order of the data set.

    Parameters
    ----------
    folder : path
    manifest : mapping
        What stands in ``manifest.json``.
    answers : mapping of str to Answer
    """

    def __init__(
        self, folder: str | os.PathLike[str], manifest: Mapping[str, Any], answers: Mapping[str, Answer]
    ) -> None:
        self.folder, self.manifest = Path(folder), dict(manifest)
        self._answers = dict(sorted(answers.items(), key=lambda entry: entry[1].index))

    def __getitem__(self, id: str) -> Answer:
        """Return an item's answer.

        Raises
        ------
        LookupError
            If there is none.
        """
        try:
            return self._answers[id]
        except KeyError:
            raise LookupError(f"answers: expected one of {id!r} in {self.folder}, got none") from None

    def __contains__(self, id: object) -> bool:
        """Whether an item has an answer, or an error."""
        return id in self._answers

    def __iter__(self) -> Iterator[str]:
        """Yield the ids."""
        return iter(self._answers)

    def __len__(self) -> int:
        """Return the number of items, those with an error among them."""
        return len(self._answers)

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by id."""
        return {id: answer.error for id, answer in self._answers.items() if answer.error}

    @property
    def digest(self) -> str:
        """SHA-256 of ids, images, prompts and tokens: two folders with the same one have the same answers."""
        found = hashlib.sha256()
        for id, answer in self._answers.items():
            line = [id, answer.image, answer.prompt, answer.token_ids, bool(answer.error)]
            found.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        return found.hexdigest()

    def load_image(self, item: Item) -> Image.Image:
        """Decode an item's image, and see that it is the one that was answered about.

        Raises
        ------
        ValueError, FileNotFoundError
            If it is another, or cannot be read.
        """
        picture, found = item.read_image()
        expected = self[item.id].image
        if expected and found != expected:
            raise ValueError(
                f"image: expected that of {item.id!r} which was answered about (SHA-256 {expected[:16]}...), got "
                f"another ({found[:16]}...)"
            )
        return picture


def load_frozen(folder: str | os.PathLike[str]) -> Frozen:
    """Read the answers of a folder, of all its shards.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If a file is none of ours.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    if manifest is None:
        raise FileNotFoundError(f"output: expected {MANIFEST} in {root}, got none")
    return Frozen(root, manifest, read_answers(root))


def freeze(
    explainer: Explainer,
    reader: Reader,
    folder: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    retry: bool = False,
    progress: Callable[[int, int | None, str], object] | None = None,
    **generate_kwargs: Any,
) -> Frozen:
    """Let a model answer about every item of a data set, once; what is there already is kept.

    ::

        frozen = freeze(explainer, open_data("demo://scenes?n=300&seed=7"), "results/answers")
        frozen["caption-7-0"].text

    Given answers are brought to tokens as they are. An image that cannot be read, or an answer without a token, is an
    answer with its error.

    Parameters
    ----------
    explainer : Explainer
    reader : Reader
        See :func:`tam_fast.evaluation.data.open_data`.
    folder : path
        Of the answers; made if it is not there. Shards may share it.
    prompt : str, optional
        What is asked of items without a prompt of their own, or a name of :data:`tam_fast.evaluation.data.PROMPTS`;
        ``"Describe this image."``.
    max_new_tokens : int
    seed : int
        With the item's id it seeds what is sampled.
    limit : int, optional
        Only the first items.
    shard : (i, n), optional
        Of these, every n-th from the i-th, 0 to n - 1. Each shard has a file of its own.
    retry : bool
        Try again what ended in an error.
    progress : callable, optional
        ``progress(done, total, "answering")``.
    **generate_kwargs
        Of ``generate``: numbers, texts and lists of them. ``do_sample=False`` (greedy) if nothing else is said;
        ``do_sample=None`` leaves it to the model.

    Returns
    -------
    Frozen
        All answers of the folder.

    Raises
    ------
    ValueError
        If the folder was made with something else: another model, other weights, data, prompt or options, each of which
        the message names; if two items have the same id, or an argument is wrong.
    TypeError
        If an option of ``generate`` is no plain data.
    Locked
        If another process writes the same shard's answers.
    OSError
        If the folder cannot be written.
    """
    from tam_fast.explain.generation import generate_arguments

    asked = prompt_of(prompt) or _PROMPT
    options = {"do_sample": False, **generate_kwargs}
    _check_plain(options)
    generate_arguments(explainer.model, max_new_tokens, options)
    work = chosen(reader, limit, shard)  # checks both before anything is written
    total = count_of(reader, limit, shard)
    model = _model(explainer.model)
    name = model.pop("name")
    config = {
        "data": dict(reader.fingerprint()),
        "model": model,
        "processor": _processor(explainer.processor),
        "prompt": asked,
        "generation": {"max_new_tokens": max_new_tokens, "seed": seed, **options},
    }
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    run = _begin(root, json.loads(json.dumps(config)), name, _versions(explainer))
    path = root / file_name(shard)
    seen: set[str] = set()
    with only_writer(path):
        known = read_answers(root)
        for done, (index, item) in enumerate(work, start=1):
            if item.id in seen:
                raise ValueError(f"data: expected items with ids of their own, got {item.id!r} twice")
            seen.add(item.id)
            before = known.get(item.id)
            question = item.prompt or asked
            if before is None or (before.error and retry):
                answer = _answered(explainer, item, index, question, max_new_tokens, options, seed, run)
                append_line(path, asdict(answer))
            elif not before.error:
                _check_same(before, item, question)
            if progress is not None:
                progress(done, total, "answering")
    return _end(root)


def _answered(
    explainer: Explainer,
    item: Item,
    index: int,
    prompt: str,
    max_new_tokens: int,
    options: Mapping[str, Any],
    seed: int,
    run: int,
) -> Answer:
    """Make the answer about an item; what goes wrong with it is its error."""
    began = time.perf_counter()
    try:
        picture, digest = item.read_image()
        own = seed ^ zlib.crc32(item.id.encode("utf-8", "surrogatepass"))
        ids, ends, first, text = _said(explainer, picture, prompt, item.answer, max_new_tokens, options, own)
    except Exception as error:
        return Answer(item.id, index, prompt, given=item.answer, run=run, error=_told(error))
    return Answer(
        item.id,
        index,
        prompt,
        text,
        tuple(ids),
        tuple(ends),
        first,
        item.answer,
        digest,
        picture.size,
        round(time.perf_counter() - began, 6),
        run,
    )


def _said(
    explainer: Explainer,
    picture: Image.Image,
    prompt: str,
    given: str | None,
    max_new_tokens: int,
    options: Mapping[str, Any],
    seed: int,
) -> tuple[list[int], list[int], int, str]:
    """Return an answer's token ids (T,), its end mark, where it begins behind a thinking section, and its text."""
    from tam_fast.explain.answers import end_ids, without_end
    from tam_fast.explain.targets import select
    from tam_fast.models.text import TextDecoder

    if given is not None:
        request = explainer._request(picture, prompt, answer=given)
        assert request.answer is not None
        ids, ends = request.answer, []
    else:
        request = explainer._request(picture, prompt, max_new_tokens=max_new_tokens, **options)
        written = _generated(request.job, request.arguments, seed)
        ids = without_end(request.job, written, end_ids(request.job, request.arguments))
        ends = written[len(ids) :]
    decoder = TextDecoder(request.job.processor.tokenizer)
    for token_id in ids:
        decoder.append(int(token_id))
    answer = select(decoder, request.job.prompt_end(), "answer")
    return ids, ends, answer.steps[0], answer.text


def _generated(job: Any, arguments: Mapping[str, Any], seed: int) -> list[int]:
    """Generate an answer, to the end mark."""
    import torch

    from tam_fast.models.wrappers import input_device, uncompiled

    device = input_device(job.model)
    with torch.no_grad(), uncompiled(job.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = job.model.generate(**job.model_inputs(), **arguments)
    sequence = output if isinstance(output, torch.Tensor) else output.sequences
    written: list[int] = sequence[0, job.prompt.layout.answer_start :].tolist()
    return written


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # An error that names no argument of ours is told by its type, too.
    text = text if text.partition(": ")[0].isidentifier() else f"{type(error).__name__}: {text}"
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."


def _check_same(answer: Answer, item: Item, prompt: str) -> None:
    """Refuse an item that is asked, or answered, otherwise than when it was frozen."""
    for name, before, now in (("prompt", answer.prompt, prompt), ("answer", answer.given, item.answer)):
        if before != now:
            raise ValueError(
                f"{name}: expected that of {item.id!r} when its answer was frozen, {before!r:.80}, got {now!r:.80}"
            )


# What they are made of ------------------------------------------------------------------------------------------------


def _check_plain(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if not _is_plain(value):
            raise TypeError(f"{name}: expected numbers, texts or lists, which a manifest holds, got {value!r:.80}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or (isinstance(value, (bool, int, float, str)) and value == value)


def _model(model: Any) -> dict[str, Any]:
    """Describe a model: its name, its weights, and how it generates of its own accord."""
    from tam_fast.models.fingerprint import fingerprint

    own = getattr(model, "generation_config", None)
    settings = {} if own is None else own.to_diff_dict()
    settings.pop("transformers_version", None)
    return {**fingerprint(model), "generation_config": json.loads(json.dumps(settings, default=str))}


def _processor(processor: Any) -> dict[str, str]:
    parts = {"image_processor": processor.image_processor.to_dict(), "chat_template": processor.chat_template}
    return {"class": type(processor).__name__, **{name: _digest(part) for name, part in parts.items()}}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _versions(explainer: Explainer) -> dict[str, str]:
    found = {"device": str(getattr(explainer.model, "device", ""))}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _begin(root: Path, config: Mapping[str, Any], model: str, versions: dict[str, str]) -> int:
    """Write the manifest, or compare it with what is asked for; return the number of the run's versions."""
    with held(root):
        manifest = read_manifest(root)
        if manifest is None:
            manifest = new_manifest(root, model, config)
        apart = differences(manifest["config"], config)
        if apart:
            raise ValueError(
                f"output: expected a folder whose answers were made in the same way, got {root}, made in another: "
                + "; ".join(apart)
            )
        runs: list[dict[str, str]] = manifest["runs"]
        if versions not in runs:
            runs.append(versions)
            write_manifest(root, manifest)
        return runs.index(versions)


def _end(root: Path) -> Frozen:
    """Read all answers, and note their number and checksum in the manifest."""
    with held(root):
        frozen = load_frozen(root)
        told = {"answers": len(frozen), "errors": len(frozen.errors), "sha256": frozen.digest}
        if frozen.manifest.get("frozen") != told:
            frozen.manifest["frozen"] = told
            write_manifest(root, frozen.manifest)
    return frozen
