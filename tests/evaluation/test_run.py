"""Whole runs: maps from shared passes, frozen answers, rows, and what becomes of a run that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

pytest.importorskip("pyarrow")

from tam_fast.demo import load_demo
from tam_fast.evaluation.data import open_data
from tam_fast.evaluation.data.item import Item
from tam_fast.evaluation.measures import Options
from tam_fast.evaluation.passes import Subject, all_methods, read_method
from tam_fast.evaluation.results import Results, read_results
from tam_fast.evaluation.rows import Rows, read_rows
from tam_fast.evaluation.run import evaluate, plan
from tam_fast.explain import Explainer
from tam_fast.maps.answer import activation_maps
from tam_fast.methods.task import Task

DATA = "demo://scenes?n=4&seed=11"


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(*load_demo())


@pytest.fixture(scope="module")
def answer(explainer: Explainer) -> Any:
    item = next(iter(open_data(DATA)))
    return explainer.explain(item.load_image(), "Describe this image.")


@pytest.fixture
def subject(explainer: Explainer, answer: Any) -> Subject:
    return Subject(explainer, answer.images[0], "Describe this image.", answer.token_ids, seed=3)


# Maps from shared passes


@pytest.mark.parametrize(
    "name",
    [
        *("cam", "cam+eci", "cam+eci_mean+gaussian", "cam+eci_attention", "attention", "feature_surgery+eci+rgf"),
        *("grad_attention", "grad_attention+eci+rgf", "cam@answer"),
    ],
)
def test_maps_are_those_of_explain(explainer: Explainer, answer: Any, subject: Subject, name: str) -> None:
    method, _, scale = name.partition("@")
    found = subject.maps(read_method(name))
    wanted = explainer.explain(
        answer.images[0], answer=answer.token_ids, method=method, scale="answer" if scale else "map"
    )
    assert np.array_equal(found.values, wanted.maps.maps.numpy())
    assert np.array_equal(found.rasters[2], wanted[2].numpy())


def test_tam_and_its_steps_are_those_of_the_kernels(explainer: Explainer, answer: Any, subject: Subject) -> None:
    forced = explainer.explain(answer.images[0], answer=answer.token_ids)
    assert np.array_equal(subject.maps(read_method("tam")).values, forced.maps.maps.numpy())
    rows = explainer.model.get_output_embeddings().weight.detach()
    for name, options in (
        ("cam@joint", {"kernel_size": 1, "interference": False}),
        ("cam+eci@joint", {"kernel_size": 1}),
        ("cam+rgf@joint", {"interference": False}),
    ):
        wanted = activation_maps(
            subject.task.hidden(),
            rows,
            subject.task.token_ids,
            subject.layout,
            **options,  # type: ignore[call-overload]
        )
        found = subject.maps(read_method(name)).values
        assert found == pytest.approx(wanted.maps.numpy(), abs=1e-5), name


def test_official_maps(explainer: Explainer, answer: Any) -> None:
    picture, ids = answer.images[0], answer.token_ids
    found = Subject(explainer, picture, "Describe this image.", ids, compat="official").maps(read_method("tam"))
    wanted = explainer.explain(picture, answer=ids, compat="official")
    assert np.array_equal(found.values, np.nan_to_num(wanted.maps.maps.numpy()))
    assert not np.array_equal(found.values[0], answer.maps.maps.numpy()[0])


def test_one_pass_serves_all_methods_of_states(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    run = Task.hidden
    monkeypatch.setattr(Task, "hidden", lambda task: passes.append(1) or run(task))
    for name in ("tam", "cam", "cam+eci", "cam+rgf", "cam@joint", "feature_surgery", "layer_cam", "grad_cam_plusplus"):
        subject.maps(read_method(name))
    assert len(passes) == 1


def test_maps_that_know_nothing(subject: Subject, explainer: Explainer, answer: Any) -> None:
    for name in ("random", "centre", "uniform"):
        found = subject.maps(read_method(name)).values
        assert found.shape == answer.maps.maps.shape
        other = Subject(explainer, answer.images[0], "Describe this image.", answer.token_ids, seed=4)
        assert np.array_equal(found, other.maps(read_method(name)).values) is (name != "random")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "method: expected one of"),
        ("random@map", "methods: expected neither scale nor options with 'random'"),
        ("attention@joint", "methods: expected '@joint' with cam alone"),
        ("cam@x", "methods: expected one of map, answer, joint behind '@'"),
        ("tam+eci", "method: expected nothing behind 'tam'"),
    ],
)
def test_methods_that_there_are_not(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_method(name)


def test_names_of_methods() -> None:
    assert read_method("cam@map").name == "cam"
    assert read_method("cam@map", "answer").name == "cam@map"
    assert read_method("tam@joint").name == "tam"
    assert read_method("tam@map").scale == "map"
    assert read_method("rise", options={"samples": 4}).options["samples"] == 4
    with pytest.raises(ValueError, match="expected an option of 'cam'"):
        read_method("cam", options={"samples": 4})


# Plans


def test_a_plan_has_the_reference_and_what_knows_nothing(explainer: Explainer) -> None:
    asked = plan(explainer.model, "tam", figures="pointing,rouge_l")
    assert [spec.name for spec in asked.methods] == ["tam", "cam", "random", "centre", "uniform"]
    assert asked.units() == [("", "captions"), *((spec.name, "localisation") for spec in asked.methods)]
    assert asked.costs() == ["tam: 1 forward", "cam: 1 forward"]
    every = plan(explainer.model, "all")
    assert {spec.name for spec in every.methods} == {*all_methods(explainer.model), "random", "centre", "uniform"}
    assert "attention_flow" not in all_methods(explainer.model)
    with pytest.raises(ValueError, match="method_options: expected options of methods that are asked for, got rise"):
        plan(explainer.model, "tam", method_options={"rise": {"samples": 2}})
    with pytest.raises(ValueError, match="methods: expected at least one, got none"):
        plan(explainer.model, [])


# Runs


def run(folder: Path, explainer: Explainer, methods: Any = ("tam", "cam+eci"), **options: Any) -> Results:
    options = {"figures": "localisation", "resamples": 50, "report": False, **options}
    return evaluate(options.pop("data", DATA), explainer, methods, folder, **options)


def measured(*folders: Path) -> dict[str, list[str]]:
    """Rows by item, but for what is never the same twice: seconds."""
    found: dict[str, list[str]] = {}
    for rows in read_rows(folders):
        kept = [row for row in rows if row.measure != "cost"]
        found[rows[0].item] = sorted(repr(row) for row in kept)
    return found


@pytest.fixture(scope="module")
def whole(explainer: Explainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, explainer)
    return folder


def test_a_run_measures_every_method_on_the_same_answers(whole: Path) -> None:
    results = read_results([whole], resamples=50)
    assert results.methods == ["tam", "cam", "cam+eci", "random", "centre", "uniform"]
    assert (results.items, results.failed, results.errors) == (4, 0, {})
    counts = {(cell.figure, cell.n) for cell in results.cells}
    assert len(counts) == len(results.figures)  # each method has the same words
    best, worst = results.cell("tam", "auroc"), results.cell("random", "auroc")
    assert best is not None
    assert worst is not None
    assert best.value > 0.9
    assert 0.4 < worst.value < 0.6
    assert set(results.milliseconds) == set(results.methods)
    assert results.settings["data"]["name"] == "demo-scenes"


def test_values_are_those_of_the_maps(whole: Path, explainer: Explainer) -> None:
    """One figure, made by hand from an explanation of the frozen answer."""
    from tam_fast.evaluation.frozen import load_frozen
    from tam_fast.evaluation.localisation import auroc

    item = next(iter(open_data(DATA)))
    frozen = load_frozen(whole / "answers")[item.id]
    e = explainer.explain(item.load_image(), frozen.prompt, answer=list(frozen.token_ids))
    mask = item.load_mask()
    rows = [row for row in Rows(whole).of(item.id) if (row.method, row.figure) == ("tam", "auroc")]
    assert rows
    assert mask is not None
    for row in rows:
        wanted = auroc(e[row.text].numpy(), mask == item.categories[row.text])
        assert row.value == pytest.approx(wanted, abs=1e-9)


def test_a_second_run_measures_nothing_again(
    whole: Path, explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tam_fast.evaluation.run.Subject", None)
    counts = run(whole, explainer).counts
    assert counts is not None
    assert (counts.items, counts.known, counts.measured) == (4, 4, 0)


def test_a_run_that_is_cut_off_goes_on(whole: Path, explainer: Explainer, tmp_path: Path) -> None:
    def stop(done: int, total: int | None, what: str) -> None:
        if what == "measuring" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, explainer, progress=stop)
    assert len(measured(tmp_path)) == 2
    run(tmp_path, explainer)
    assert measured(tmp_path) == measured(whole)


@pytest.mark.long
def test_methods_and_items_are_added(whole: Path, explainer: Explainer, tmp_path: Path) -> None:
    run(tmp_path, explainer, ["tam"], limit=2)
    counts = run(tmp_path, explainer, ["tam", "cam+eci"], limit=3).counts
    assert counts is not None
    assert (counts.items, counts.measured) == (3, 3)
    run(tmp_path, explainer, ["cam+eci", "tam"])
    assert measured(tmp_path) == measured(whole)
    one, two = (read_results([folder], resamples=50) for folder in (tmp_path, whole))
    assert (one.cells, one.methods) == (two.cells, two.methods)


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False])
def test_shards_are_one_run(whole: Path, explainer: Explainer, tmp_path: Path, shared: bool) -> None:
    folders = [tmp_path if shared else tmp_path / str(part) for part in range(3)]
    for part, folder in enumerate(folders):
        run(folder, explainer, shard=(part, 3))
    joined = list(dict.fromkeys(folders))
    assert measured(*joined) == measured(whole)
    one, two = (read_results(some, resamples=50) for some in (joined, [whole]))
    assert one.cells == two.cells


def test_a_folder_of_other_settings_is_refused(whole: Path, explainer: Explainer) -> None:
    before = measured(whole)
    for options, message in (
        ({"scale": "answer"}, "scale: map, not answer"),
        ({"options": Options(steps=3)}, "steps: 32, not 3"),
        ({"options": Options(seed=1)}, "seed: 0, not 1"),
        ({"prompt": "What is here?"}, "prompt"),
        ({"data": "demo://scenes?n=4&seed=12"}, "seed"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            run(whole, explainer, **options)
    assert measured(whole) == before


@pytest.mark.long
def test_options_of_a_method_are_settings(explainer: Explainer, tmp_path: Path) -> None:
    attention = {"attention": {"layer": 0}}
    run(tmp_path, explainer, ["attention"], limit=1, method_options=attention)
    run(tmp_path, explainer, ["tam"], limit=1)
    run(tmp_path, explainer, ["attention"], limit=1, method_options=attention)
    with pytest.raises(ValueError, match=r"attention: .*'layer': 0.*, not .*'layer': None"):
        run(tmp_path, explainer, ["attention"], limit=1)


# What is wrong with items


class Reader:
    """Some items, two of them of no use."""

    name = "broken"

    def __init__(self, *items: Item) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        return iter(self.items)

    def fingerprint(self) -> dict[str, Any]:
        return {"data": self.name}

    def tags(self, words: Any) -> Any:
        return open_data(DATA).tags(words)  # type: ignore[attr-defined]


def broken() -> tuple[Reader, Reader]:
    """The same items, broken and whole."""
    first, second, third, fourth = open_data(DATA)
    wrong = [
        first,
        replace(second, image=b"no picture"),
        replace(third, mask=b"no mask"),
        replace(fourth, categories={}),
    ]
    return Reader(*wrong), Reader(first, second, third, fourth)


@pytest.mark.long
def test_errors_are_rows_and_are_counted(explainer: Explainer, tmp_path: Path) -> None:
    wrong, _ = broken()
    results = run(tmp_path, explainer, data=wrong, figures="localisation,insertion", options=Options(steps=2))
    assert (results.items, results.failed) == (4, 1)
    assert results.worked
    rows = [row for some in read_rows([tmp_path]) for row in some]
    third, fourth = (list(wrong)[place].id for place in (2, 3))
    errors = [row for row in rows if row.status == "error" and row.item == third]
    assert {row.measure for row in errors} == {"localisation"}
    assert len(errors) == 6  # once a method
    assert all("mask" in row.error for row in errors)
    assert {row.status for row in rows if row.item == fourth and row.measure == "localisation"} == {"none"}
    # What needs no mask is measured all the same.
    cell = results.cell("tam", "insertion")
    assert cell is not None
    assert cell.images == 3


@pytest.mark.long
def test_errors_are_tried_again_if_asked(explainer: Explainer, tmp_path: Path) -> None:
    wrong, right = broken()
    run(tmp_path, explainer, data=wrong)
    before = measured(tmp_path)
    assert run(tmp_path, explainer, data=right).counts.known == 4  # type: ignore[union-attr]
    assert measured(tmp_path) == before
    results = run(tmp_path, explainer, data=right, retry=True)
    assert results.errors == {}
    assert results.counts.measured == 2  # type: ignore[union-attr]


def test_a_method_that_fails_leaves_the_others(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Subject.maps

    def fail(subject: Subject, spec: Any) -> Any:
        if spec.name == "cam+eci":
            raise RuntimeError("out of luck")
        return made(subject, spec)

    monkeypatch.setattr(Subject, "maps", fail)
    results = run(tmp_path, explainer, limit=1)
    assert results.errors == {"cam+eci localisation: RuntimeError: out of luck": 1}
    assert results.methods == ["tam", "cam", "random", "centre", "uniform"]


def test_nothing_that_works_is_no_success(explainer: Explainer, tmp_path: Path) -> None:
    results = run(tmp_path, explainer, data=Reader(Item("a", b"no picture")))
    assert not results.worked
    assert results.examples[0].startswith("a: image: expected an image file")


# Killed

KILLED = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from tam_fast.demo import load_demo
from tam_fast.evaluation.run import evaluate
from tam_fast.explain import Explainer

def told(done, total, what):
    print(what, done, flush=True)

evaluate({data!r}, Explainer(*load_demo()), ["tam", "cam+eci"], sys.argv[1], figures="localisation", resamples=50,
         report=False, progress=told)
print("done", flush=True)
"""


@pytest.mark.long
def test_a_killed_run_loses_at_most_one_item(whole: Path, tmp_path: Path) -> None:
    """kill -9 while it answers, then while it measures, again and again, until the run is through."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    code = KILLED.format(tests=str(ROOT / "tests"), data=DATA)
    generator = np.random.default_rng(1)
    said: list[str] = []
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        finished = False
        before = len(list((tmp_path / "rows").glob("*.parquet"))) if (tmp_path / "rows").is_dir() else 0
        allowed = int(generator.integers(1, 3))  # items, then it dies
        for line in process.stdout:
            said.append(line)
            finished = line == "done\n"
            if line.startswith("measuring"):
                now = len(list((tmp_path / "rows").glob("*.parquet")))
                if now - before >= allowed:
                    break
            elif line.startswith("answering 2") and not kills:
                break
        if finished:
            assert process.wait() == 0
            break
        assert process.poll() is None, "it ended by itself"
        time.sleep(float(generator.random()) * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        told = max((int(one.split()[1]) for one in said if one.startswith("measuring")), default=0)
        assert len(list((tmp_path / "rows").glob("*.parquet"))) >= told  # what was told is there
    assert finished
    assert kills >= 2
    assert measured(tmp_path) == measured(whole)
    assert not list((tmp_path / "rows").glob("*.tmp"))
