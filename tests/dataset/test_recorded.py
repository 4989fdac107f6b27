"""Answers whose states vLLM wrote: the maps are `explain`'s, and what does not fit is an error row."""

import json
import struct
from functools import cache

import numpy as np
import pytest
import torch
from conftest_cli import assert_fails
from conftest_cli import run as command

from tam_fast.dataset import open_dataset, run
from tam_fast.dataset.models import ModelSpec
from tam_fast.dataset.recorded import Recorded
from tam_fast.demo import load_demo, sample_scenes
from tam_fast.explain import Explainer
from tam_fast.models.inputs import load_images, prepare_inputs

pytest.importorskip("pyarrow")

PROMPTS = ("Describe this image.", "What is on the left?")


@cache
def recorded():
    """Answers of the embedded model: (path, prompt, ids of the prompt, states before the final norm, explanation)."""
    model, processor = load_demo()
    explainer, found = Explainer(model, processor), []
    for path, prompt in zip(sample_scenes(), PROMPTS, strict=False):
        image = load_images(path)[0]
        e = explainer.explain(image, prompt, max_new_tokens=8)
        asked = prepare_inputs(model, processor, [image], prompt)
        ids = torch.cat([asked.input_ids, torch.tensor(e.token_ids)])
        kinds = torch.nn.functional.pad(asked.inputs["mm_token_type_ids"], (0, len(e.token_ids)))
        inputs = {**asked.inputs, "input_ids": ids[None], "attention_mask": torch.ones(1, len(ids)).long()}
        seen = {}
        hook = model.model.language_model.norm.register_forward_hook(lambda _m, a, _o, seen=seen: seen.update(x=a[0]))
        with torch.no_grad():
            model(**{**inputs, "mm_token_type_ids": kinds})
        hook.remove()
        found.append((path, prompt, asked.input_ids.tolist(), seen["x"][0].detach(), e))
    return found


def write(path, states, ids):
    """A file as vLLM's connector writes it, from the format's description."""
    arrays = {"hidden_states": states.numpy()[:, None], "token_ids": np.asarray(ids, dtype=np.int64)}
    head, body = {}, b""
    for name, array in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(body), len(body) + array.nbytes]}
        body += np.ascontiguousarray(array).tobytes()
    text = json.dumps(head).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.fixture
def given(tmp_path):
    """Rows of JSON, their images, and the files of their states; one of them as it is with an end mark behind."""
    lines = []
    for k, (path, prompt, ids, states, e) in enumerate(recorded()):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
        lines.append({"id": f"row/{k}", "image": path.name, "prompt": prompt, "said": e.text})
        count = len(ids) + len(e.token_ids) - (k == 0)
        write(tmp_path / "states" / f"row/{k}.safetensors", states[:count], [*ids, *e.token_ids][:count])
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


OPTIONS = {"id": "id", "prompt": "prompt", "answer": "said"}


def explained(given, output="out", **options):
    options = {**OPTIONS, "maps_format": "float16", **options}
    return run(given / "in" / "rows.jsonl", given / output, states=given / "states", **options)


def rewrite(given, **changes):
    path = given / "in" / "rows.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**line, **changes}) for line in lines[:1]))


def error(given):
    assert explained(given).errors == 1
    ((_, message),) = open_dataset(given / "out").errors()
    return message


def test_maps_are_those_of_explain(given):
    """Without the model: its lm_head and final norm alone."""
    loaded = ModelSpec(states=str(given / "states")).load()
    assert sum(p.numel() for p in loaded.model.parameters()) == loaded.classifier.norm.weight.numel()
    requests = [
        {"id": f"row/{k}", "images": [path], "prompt": prompt, "answer": e.text}
        for k, (path, prompt, _, _, e) in enumerate(recorded())
    ]
    for made, (*_, e) in zip(loaded.explain_batch(requests), recorded(), strict=True):
        assert (made.token_ids, made.text, made.layout, made.prompt) == (e.token_ids, e.text, e.layout, e.prompt)
        assert float((made.maps.maps - e.maps.maps).abs().max()) < 1e-5
        assert float((made.relevance - e.relevance).abs().max()) < 1e-5
        assert made.source == "states"


def test_a_data_set_of_states(given):
    report = explained(given)
    assert (report.done, report.errors) == (2, 0)
    opened = open_dataset(given / "out")
    for k, (*_, e) in enumerate(recorded()):
        made = opened[f"row/{k}"]
        assert made.token_ids == e.token_ids
        assert float((made.maps.maps - e.maps.maps).abs().max()) < 5e-4  # float16
    assert explained(given).explained == 0
    # Rows that a model would generate are others.
    with pytest.raises(ValueError, match="output: expected the configuration"):
        run(given / "in" / "rows.jsonl", given / "out", model=load_demo(), **OPTIONS, maps_format="float16")


def test_the_tokens_that_were_generated_are_taken_where_others_spell_the_same(given):
    """A model may write a word in other tokens than a tokenizer would."""
    tokenizer = load_demo()[1].tokenizer
    path, prompt, ids, states, e = recorded()[0]
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "star"]
    said = [number for one in letters for number in one]
    assert tokenizer.decode(said) == "star"
    assert tokenizer("star", add_special_tokens=False)["input_ids"] != said
    for count in (len(said), len(said) - 1):  # with an end mark behind, and without
        whole = [*ids, *said][: len(ids) + count]
        write(given / "states" / "x.safetensors", states[:1].repeat(len(whole), 1), whole)
        loaded = Recorded.from_folder(None, given / "states")
        (made,) = loaded.explain_batch([{"id": "x", "images": [path], "prompt": prompt, "answer": "star"}])
        assert (made.token_ids, made.text) == (said, "star")
    assert e.token_ids != said


@pytest.mark.parametrize("case", ["missing", "prompt", "answer", "short", "outside", "broken", "empty", "image"])
def test_what_does_not_fit_is_an_error_row(given, case):
    path, _, ids, states, e = recorded()[0]
    file = given / "states" / "row" / "0.safetensors"
    if case == "missing":
        rewrite(given)
        file.unlink()
        assert "expected hidden states in" in error(given)
    elif case == "prompt":
        rewrite(given, prompt="What is it?")
        assert "another request's" in error(given)
    elif case == "answer":
        rewrite(given, said="A dog.")
        assert "expected" in error(given)
    elif case == "short":
        rewrite(given)
        write(file, states[: len(ids)], ids)
        assert "include_output_tokens" in error(given)
    elif case == "outside":
        (given / "secret.safetensors").write_bytes(file.read_bytes())
        rewrite(given, id="../secret")
        assert "states: expected a file inside" in error(given)
    elif case == "broken":
        rewrite(given)
        file.write_bytes(file.read_bytes()[:1000])
        assert "expected a whole safetensors file" in error(given)
    elif case == "empty":
        rewrite(given, said=None)
        assert "answer: expected a text" in error(given)
    else:
        rewrite(given, image="missing.png")
        assert "image: No such file" in error(given)
    assert path.exists()
    assert e.text


def test_arguments_that_do_not_go_together(given):
    with pytest.raises(ValueError, match="answer: expected the column of the recorded answers"):
        explained(given, answer=None)
    with pytest.raises(ValueError, match="explain: expected kernel_size and compat alone with states, got method"):
        explained(given, explain={"method": "cam"})
    with pytest.raises(TypeError, match="model: expected a folder with states"):
        explained(given, model=load_demo())
    with pytest.raises(ValueError, match="model: expected a folder with states, got 'owner/name'"):
        explained(given, model="owner/name")
    (given / "states").rename(given / "moved")
    with pytest.raises(ValueError, match="states: expected a folder"):
        explained(given)


def test_the_command(given, monkeypatch):
    monkeypatch.chdir(given)
    options = ("--id", "id", "-p", "prompt", "--answer", "said")
    result = command("dataset", "in/rows.jsonl", "-o", "out", *options, "--states", "states")
    assert (result.exit_code, result.stdout[:11]) == (0, "2 of 2 rows")
    wrong = command("dataset", "in/rows.jsonl", "-o", "out", *options, "--states", "states", "--method", "cam")
    assert_fails(wrong, 2, "--method: expected none with --states, got cam")
    assert_fails(command("dataset", "in/rows.jsonl", "-o", "b", *options, "--states", "none"), 3, "states: expected")
