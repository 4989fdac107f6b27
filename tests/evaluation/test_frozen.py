"""Frozen answers: made once, gone on with after any end, of one configuration alone; errors and given answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from asked_scenes import explainer
from PIL import Image

from tam_fast.dataset.durable import Locked
from tam_fast.evaluation import frozen as frozen_module
from tam_fast.evaluation.data import open_data
from tam_fast.evaluation.data.item import Item
from tam_fast.evaluation.frozen import Answer, Frozen, freeze, load_frozen
from tam_fast.evaluation.frozen_files import read_answers

SCENES = "demo://scenes?n=3&seed=3"
SHORT = {"max_new_tokens": 5}
PROMPT = "Describe this image."


class Items:
    """A reader of given items."""

    name = "items"

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def fingerprint(self):
        return {"data": self.name}


def square(colour=(200, 30, 30), side=56):
    return Image.fromarray(np.full((side, side, 3), colour, dtype=np.uint8))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Answers of three scenes, made in one run; not to be changed."""
    folder = tmp_path_factory.mktemp("frozen")
    return freeze(explainer(), open_data(SCENES), folder, **SHORT)


def count_generations(monkeypatch):
    calls = []
    before = frozen_module._generated

    def counted(*arguments):
        calls.append(arguments)
        return before(*arguments)

    monkeypatch.setattr(frozen_module, "_generated", counted)
    return calls


# One run ------------------------------------------------------------------------------------------------------------


def test_answers_are_the_models_own(whole):
    item = next(iter(open_data(SCENES)))
    e = explainer().explain(item.load_image(), PROMPT, do_sample=False)
    full = freeze(explainer(), Items(item), whole.folder.parent / "full")[item.id]
    assert (list(full.token_ids), full.text) == (e.token_ids, e.text)
    assert full.end_ids == (explainer().model.generation_config.eos_token_id,)
    short = whole[item.id]
    assert (short.token_ids, short.end_ids) == (full.token_ids[:5], ())  # the limit came before the end
    assert (short.image, short.size) == (item.read_image()[1], (160, 160))
    assert (short.prompt, short.given, short.error, short.index, short.first) == (PROMPT, None, "", 0, 0)


def test_the_manifest_says_what_made_them(whole):
    manifest = json.loads((whole.folder / "manifest.json").read_text())
    config = manifest["config"]
    assert config["data"] == open_data(SCENES).fingerprint()
    assert config["generation"] == {"max_new_tokens": 5, "seed": 0, "do_sample": False}
    assert config["prompt"] == PROMPT
    assert len(config["model"]["weights"]) == len(config["model"]["config"]) == 64
    assert {"torch", "transformers", "device"} <= set(manifest["runs"][0])
    assert manifest["frozen"] == {"answers": 3, "errors": 0, "sha256": whole.digest}
    lines = (whole.folder / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [item.id for item in open_data(SCENES)]


def test_answers_are_a_mapping_in_the_order_of_the_data(whole):
    assert list(whole) == [item.id for item in open_data(SCENES)]
    assert [answer.index for answer in whole.values()] == list(range(3))
    assert "caption-3-0" in whole
    assert "caption-3-9" not in whole
    with pytest.raises(LookupError, match=r"answers: expected one of 'caption-3-9' in .*, got none"):
        whole["caption-3-9"]
    again = load_frozen(whole.folder)
    assert (dict(again), again.digest) == (dict(whole), whole.digest)


def test_the_digest_tells_answers_apart(whole):
    def changed(**entries):
        first = next(iter(whole.values()))
        return Frozen(whole.folder, {}, {**whole, first.id: Answer(**{**vars(first), **entries})}).digest

    assert changed() == changed(seconds=9.0, run=3) == whole.digest
    assert (
        len({whole.digest, changed(token_ids=(1, 2)), changed(image="x"), changed(prompt="?"), changed(error="x")}) == 5
    )


def test_the_image_must_be_the_one_that_was_answered_about(whole):
    item = next(iter(open_data(SCENES)))
    assert whole.load_image(item).size == (160, 160)
    with pytest.raises(ValueError, match="image: expected that of 'caption-3-0' which was answered about"):
        whole.load_image(Item(item.id, square()))


# Further runs -------------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept_and_more_is_added(tmp_path, whole, monkeypatch):
    calls, told = count_generations(monkeypatch), []
    freeze(explainer(), open_data(SCENES), tmp_path, limit=1, **SHORT)
    assert len(calls) == 1
    found = freeze(explainer(), open_data(SCENES), tmp_path, progress=lambda *state: told.append(state), **SHORT)
    assert len(calls) == 3
    assert found.digest == whole.digest
    assert told == [(k, 3, "answering") for k in range(1, 4)]
    freeze(explainer(), open_data(SCENES), tmp_path, **SHORT)
    assert len(calls) == 3


def test_shards_in_one_folder_are_one_run(tmp_path, whole, monkeypatch):
    calls = count_generations(monkeypatch)
    for part in (1, 0):
        freeze(explainer(), open_data(SCENES), tmp_path, shard=(part, 2), **SHORT)
    names = sorted(path.name for path in tmp_path.glob("answers*"))
    assert names == ["answers-00000-of-00002.jsonl", "answers-00001-of-00002.jsonl"]
    found = freeze(explainer(), open_data(SCENES), tmp_path, **SHORT)
    assert len(calls) == 3
    assert (found.digest, list(found)) == (whole.digest, list(whole))


def test_whatever_ends_a_run_takes_at_most_the_answer_at_hand(tmp_path, whole, monkeypatch):
    before, left = frozen_module._generated, [2]

    def ends(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return before(*arguments)

    monkeypatch.setattr(frozen_module, "_generated", ends)
    with pytest.raises(KeyboardInterrupt):
        freeze(explainer(), open_data(SCENES), tmp_path, **SHORT)
    assert len(read_answers(tmp_path)) == 1
    monkeypatch.setattr(frozen_module, "_generated", before)
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "caption-3-1", "index": 1, "te')  # cut by a crash
    calls = count_generations(monkeypatch)
    found = freeze(explainer(), open_data(SCENES), tmp_path, **SHORT)
    assert len(calls) == 2
    assert (found.digest, list(load_frozen(tmp_path))) == (whole.digest, list(whole))


@pytest.mark.long
def test_kill_loses_at_most_one_answer(tmp_path, whole):
    code = textwrap.dedent(
        f"""
        import torch
        torch.set_num_threads(1)
        from tam_fast.demo import load_demo
        from tam_fast.evaluation.data import open_data
        from tam_fast.evaluation.frozen import freeze
        from tam_fast.explain.explainer import Explainer
        freeze(Explainer(*load_demo()), open_data({SCENES!r}), {str(tmp_path)!r}, max_new_tokens=5)
        """
    )
    path, reached = tmp_path / "answers.jsonl", 0
    for wanted in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait() in (-signal.SIGKILL, 0)
        found = read_answers(tmp_path)
        assert len(found) >= max(wanted, reached)
        assert all(answer.token_ids == whole[id].token_ids for id, answer in found.items())
        reached = len(found)
    assert freeze(explainer(), open_data(SCENES), tmp_path, **SHORT).digest == whole.digest


def test_another_process_may_not_write_the_same_answers(tmp_path):
    held = []

    def meanwhile(done, total, what):
        with pytest.raises(Locked, match="output: expected answers that nobody writes, another process writes"):
            freeze(explainer(), open_data(SCENES), tmp_path, limit=1, **SHORT)
        held.append(freeze(explainer(), open_data(SCENES), tmp_path, limit=1, shard=(0, 2), **SHORT))

    freeze(explainer(), open_data(SCENES), tmp_path, limit=1, progress=meanwhile, **SHORT)
    assert len(held) == 1  # another shard may


# Another configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("demo://scenes?n=3&seed=4", SHORT, "data.seed: 3, now 4$"),
        (SCENES, {"max_new_tokens": 6}, "generation.max_new_tokens: 5, now 6$"),
        (SCENES, SHORT | {"do_sample": True}, "generation.do_sample: false, now true$"),
        (SCENES, SHORT | {"num_beams": 2}, "generation.num_beams: null, now 2$"),
        (SCENES, SHORT | {"seed": 1}, "generation.seed: 0, now 1$"),
        (SCENES, SHORT | {"prompt": "one-sentence"}, 'prompt: "Describe this image.", now "Write a one-sentence'),
        ("demo://scenes?seed=4", {"max_new_tokens": 6}, "data.seed: 3, now 4; generation.max_new_tokens: 5, now 6$"),
    ],
)
def test_another_configuration_is_refused_by_each_difference(whole, data, options, message):
    before = {path.name: path.read_bytes() for path in whole.folder.iterdir()}
    with pytest.raises(
        ValueError, match=f"output: expected a folder whose answers were made in the same way.*{message}"
    ):
        freeze(explainer(), open_data(data), whole.folder, **options)
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == before


def test_other_weights_are_refused(whole):
    import torch

    weight = explainer().model.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight += 1e-3
        with pytest.raises(ValueError, match=r"made in another: model\.weights: "):
            freeze(explainer(), open_data(SCENES), whole.folder, **SHORT)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_other_settings_of_the_model_and_processor_are_refused(whole, monkeypatch):
    config = explainer().model.generation_config
    monkeypatch.setattr(config, "repetition_penalty", 1.5)
    with pytest.raises(
        ValueError, match=r"made in another: model.generation_config.repetition_penalty: null, now 1\.5"
    ):
        freeze(explainer(), open_data(SCENES), whole.folder, **SHORT)
    monkeypatch.undo()
    monkeypatch.setattr(explainer().processor.image_processor, "image_mean", [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"made in another: processor\.image_processor: "):
        freeze(explainer(), open_data(SCENES), whole.folder, **SHORT)


def test_where_the_model_was_loaded_from_does_not_matter(whole, monkeypatch):
    monkeypatch.setattr(explainer().model.config, "name_or_path", "moved elsewhere")
    assert freeze(explainer(), open_data(SCENES), whole.folder, **SHORT).digest == whole.digest


def test_versions_of_each_run_are_kept(tmp_path, monkeypatch):
    freeze(explainer(), open_data(SCENES), tmp_path, limit=1, **SHORT)
    monkeypatch.setattr(frozen_module, "_versions", lambda _: {"torch": "99"})
    found = freeze(explainer(), open_data(SCENES), tmp_path, limit=2, **SHORT)
    assert [answer.run for answer in found.values()] == [0, 1]
    assert found.manifest["runs"][1] == {"torch": "99"}


def test_an_item_that_is_asked_otherwise_is_refused(tmp_path):
    freeze(explainer(), Items(Item("a", square(), answer="a red square")), tmp_path)
    for item, message in (
        (Item("a", square(), answer="a blue square"), "answer: expected that of 'a' .* got 'a blue square'"),
        (Item("a", square()), "answer: expected that of 'a' .* got None"),
        (Item("a", square(), answer="a red square", prompt="What is it?"), "prompt: expected that of 'a' .* got 'What"),
    ):
        with pytest.raises(ValueError, match=message):
            freeze(explainer(), Items(item), tmp_path)


# Items --------------------------------------------------------------------------------------------------------------


def test_given_answers_are_frozen_as_they_are(tmp_path, monkeypatch):
    calls = count_generations(monkeypatch)
    reader = Items(Item("a", square(), answer="The image shows a moon.", prompt="What is in the image?"))
    answer = freeze(explainer(), reader, tmp_path)["a"]
    e = explainer().explain(square(), "What is in the image?", answer="The image shows a moon.")
    assert calls == []
    assert (list(answer.token_ids), answer.text, answer.given) == (e.token_ids, e.text, "The image shows a moon.")
    assert (answer.prompt, answer.end_ids) == ("What is in the image?", ())


def test_errors_are_rows_and_tried_again_if_asked(tmp_path, monkeypatch):
    path = tmp_path / "late.png"
    reader = Items(
        Item("bytes", b"no image"),
        Item("row", error="box: expected four numbers, got 3"),
        Item("good", square(), answer="a star"),
        Item("empty", square(), answer=""),
        Item("late", path, answer="a star"),
    )
    output = tmp_path / "out"
    found = freeze(explainer(), reader, output)
    assert set(found.errors) == {"bytes", "row", "empty", "late"}
    assert found.errors["row"] == "box: expected four numbers, got 3"
    assert found.errors["bytes"].startswith("image: expected an image file, got 8 bytes")
    assert found.errors["empty"].startswith("answer: expected a text")
    assert found.manifest["frozen"]["errors"] == 4
    square().save(path)
    assert set(freeze(explainer(), reader, output).errors) == {"bytes", "row", "empty", "late"}
    lines = (output / "answers.jsonl").read_bytes().count(b"\n")
    again = freeze(explainer(), reader, output, retry=True)
    assert set(again.errors) == {"bytes", "row", "empty"}
    assert again["late"].token_ids
    assert (output / "answers.jsonl").read_bytes().count(b"\n") == lines + 4


def test_an_error_of_the_model_is_a_row_with_its_type(tmp_path, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("CUDA out of\nmemory" + "!" * 1000)

    monkeypatch.setattr(frozen_module, "_generated", fails)
    found = freeze(explainer(), Items(Item("a", square())), tmp_path)
    assert found["a"].error.startswith("RuntimeError: CUDA out of memory!!!")
    assert len(found["a"].error) == 400


def test_what_is_wrong_with_the_call_is_no_row(tmp_path):
    items = Items(Item("a", square()), Item("a", square()))
    for reader, options, error, message in (
        (items, SHORT, ValueError, "data: expected items with ids of their own, got 'a' twice"),
        (items, {"max_new_tokens": 0}, ValueError, "max_new_tokens: expected at least 1, got 0"),
        (items, {"temperatur": 1}, ValueError, "generate_kwargs: expected arguments of generate"),
        (items, {"streamer": object()}, TypeError, "streamer: expected numbers, texts or lists"),
        (items, {"temperature": float("nan")}, TypeError, "temperature: expected numbers"),
        (items, {"limit": 0}, ValueError, "limit: expected at least 1"),
        (items, {"shard": (2, 2)}, ValueError, "shard: expected"),
        (items, {"prompt": " "}, ValueError, "prompt: expected a text"),
    ):
        with pytest.raises(error, match=message):
            freeze(explainer(), reader, tmp_path / "out", **options)


def test_samples_follow_from_seed_and_id(tmp_path):
    def sampled(name, seed, *ids):
        reader = Items(*(Item(id, square((90, 90, 90))) for id in ids))
        options = {"do_sample": True, "temperature": 5.0, "top_k": 0, "max_new_tokens": 6}
        return freeze(explainer(), reader, tmp_path / name, seed=seed, **options)

    import torch

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, second, other = sampled("a", 1, "x", "y"), sampled("b", 1, "y"), sampled("c", 2, "x")
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's own numbers go on as before
    assert first["y"].token_ids == second["y"].token_ids
    assert len({first["x"].token_ids, first["y"].token_ids, other["x"].token_ids}) == 3


def test_strange_texts_survive(tmp_path):
    id = "a/\udcff\u2028b"
    found = freeze(explainer(), Items(Item(id, error="x: \ud800")), tmp_path)
    assert load_frozen(tmp_path)[id].error == found[id].error == "x: \ud800"


# Folders ------------------------------------------------------------------------------------------------------------


def test_folders_that_are_none_of_ours_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"output: expected manifest\.json in"):
        load_frozen(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match=r"output: expected a folder of frozen answers, got .*is another's"):
        freeze(explainer(), Items(), tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "tam_fast frozen answers", "version": 9}')
    with pytest.raises(ValueError, match="output: expected version 1 of frozen answers, got 9"):
        load_frozen(tmp_path)
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(ValueError, match="output: expected JSON"):
        load_frozen(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "answers.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"output: expected a folder of frozen answers, got .*no manifest\.json"):
        freeze(explainer(), Items(), tmp_path)
    with pytest.raises(ValueError, match="output: expected frozen answers, a line each"):
        read_answers(tmp_path)


def test_a_thinking_section_is_told_apart(tmp_path):
    said = "<think>a star</think>\n\nThe image shows a moon."
    answer = freeze(explainer(), Items(Item("a", square(), answer=said)), tmp_path)["a"]
    e = explainer().explain(square(), PROMPT, answer=said)
    assert (answer.text, answer.given) == (e.text, said) == ("The image shows a moon.", said)
    assert answer.first == len(answer.token_ids) - len(e.token_ids) > 0
    assert list(answer.token_ids[answer.first :]) == e.token_ids


def test_only_thinking_is_an_error(tmp_path):
    found = freeze(explainer(), Items(Item("a", square(), answer="<think>a star</think>")), tmp_path)
    assert found.errors["a"].startswith("answer: expected tokens behind the thinking section")
