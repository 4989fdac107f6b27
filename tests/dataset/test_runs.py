"""A whole run: what is gone on with, what is refused, and what is left."""

import shutil
import threading

import numpy as np
import pytest
import torch
from data_sets import FORMS, Canned, picture, rows, write

from tam_fast import dataset
from tam_fast.dataset import open_dataset, run
from tam_fast.dataset.durable import locked
from tam_fast.dataset.models import ModelSpec

pytest.importorskip("pyarrow")


@pytest.fixture
def canned(monkeypatch):
    """Stand an explainer that needs no model in the place of the embedded one."""
    explainer = Canned()
    monkeypatch.setattr(ModelSpec, "load", lambda self: explainer)
    monkeypatch.setattr("tam_fast.dataset.runs.described", lambda _: {"name": "canned"})
    return explainer


def columns(form):
    if form == "images":
        return {}
    return {"id": "name", "image": "png" if form == "tar" else "picture", "prompt": "question"}


@pytest.mark.parametrize("form", FORMS)
def test_a_run_and_what_it_leaves(canned, tmp_path, form):
    given = write(tmp_path / "in", form, 7)
    report = run(given, tmp_path / "out", shard_rows=3, **columns(form))
    assert (report.rows, report.done, report.errors, report.explained) == (7, 7, 0, 7)
    opened = open_dataset(tmp_path / "out")
    assert len(opened) == 7
    expected = canned.explain(
        {"images": [picture(4)], "prompt": "What is 4?" if form != "images" else dataset_prompt()}
    )
    e = opened[opened.ids[4]]
    assert (e.text, e.tokens) == (expected.text, expected.tokens)
    assert float((e.maps.maps - expected.maps.maps).abs().max()) <= 1 / 255
    assert torch.equal(opened[4].maps.maps, e.maps.maps)
    assert torch.equal(opened[-3].maps.maps, e.maps.maps)
    assert [one.text for one in opened] == [e.text] * 7
    assert opened.ids[4] in opened
    assert "nothing" not in opened
    again = run(given, tmp_path / "out", shard_rows=3, **columns(form))
    assert (again.done, again.explained) == (7, 0)


def dataset_prompt():
    from tam_fast.dataset.runs import PROMPT

    return PROMPT


def test_a_run_that_was_stopped_goes_on(canned, tmp_path):
    stop = threading.Event()
    seen = []

    def progress(now):
        seen.append((now.rows, now.total))
        stop.set()

    report = run(rows(10), tmp_path / "out", stop=stop, progress=progress, shard_rows=4, **columns("memory"))
    assert (report.done, report.finished) == (4, False)
    assert len(open_dataset(tmp_path / "out")) == 4
    report = run(rows(10), tmp_path / "out", shard_rows=4, **columns("memory"))
    assert (report.done, report.explained, report.finished) == (10, 6, True)
    assert seen == [(4, 10)]


def test_rows_that_came_later_are_added(canned, tmp_path):
    given = write(tmp_path / "in", "images", 5)
    run(given, tmp_path / "out", shard_rows=4)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    (given / "0000a.png").write_bytes(picture(99))  # ahead of others by its name
    report = run(given, tmp_path / "out", shard_rows=4)
    assert (report.rows, report.explained) == (6, 1)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    assert open_dataset(tmp_path / "out").ids == ["0000.png", *(f"{k:04d}.png" for k in range(1, 5)), "0000a.png"]


def test_another_configuration_is_refused_and_named(canned, tmp_path):
    given = write(tmp_path / "in", "images", 3)
    run(given, tmp_path / "out")
    cases = ({"prompt": "Why?"}, {"maps": "none"}, {"maps_format": "float16"}, {"explain": {"kernel_size": 5}})
    for case in cases:
        name = next(iter(case.get("explain", case)))
        with pytest.raises(ValueError, match=f"output: expected the configuration.*{name}: .*now"):
            run(given, tmp_path / "out", **case)
    assert run(given, tmp_path / "out", prompt="Why?", overwrite=True).explained == 3
    assert run(given, tmp_path / "out", prompt="Why?").explained == 0


def test_an_input_that_changed_is_refused(canned, tmp_path):
    given = write(tmp_path / "in", "images", 3)
    run(given, tmp_path / "out")
    (given / "0001.png").write_bytes(picture(50) + b"more")
    with pytest.raises(ValueError, match=r"input: expected the files.*0001\.png changed"):
        run(given, tmp_path / "out")


def test_a_file_that_is_gone_leaves_what_is_done(canned, tmp_path):
    given = write(tmp_path / "in", "images", 3)
    run(given, tmp_path / "out", shard_rows=2)
    (given / "0001.png").unlink()
    assert run(given, tmp_path / "out", shard_rows=2).done == 3
    (tmp_path / "out" / "part-00000.parquet").unlink()
    report = run(given, tmp_path / "out", shard_rows=2)
    assert (report.done, report.errors) == (3, 1)
    assert [name for name, _ in open_dataset(tmp_path / "out").errors()] == ["0001.png"]


def test_parts_of_another_run_do_not_count(canned, tmp_path):
    given = write(tmp_path / "in", "images", 4)
    run(given, tmp_path / "out", shard_rows=2)
    run(given, tmp_path / "other", shard_rows=2, prompt="Why?")
    shutil.copy(tmp_path / "other" / "part-00001.parquet", tmp_path / "out")
    assert run(given, tmp_path / "out", shard_rows=2).explained == 2
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"PAR1")
    assert run(given, tmp_path / "out", shard_rows=2).explained == 2


def test_error_rows_are_counted_on_every_run_and_explained_anew_when_asked_for(canned, tmp_path):
    broken = True

    def fault(requests):
        for k, request in enumerate(requests):
            if broken and request["prompt"] in ("What is 1?", "What is 8?"):
                raise ValueError(f"requests[{k}]: broken")

    canned.fault = fault
    options = {**columns("memory"), "shard_rows": 4}
    assert run(rows(10), tmp_path / "out", **options).errors == 2
    report = run(rows(10), tmp_path / "out", **options)
    assert (report.errors, report.explained) == (2, 0)
    broken = False
    canned.batches.clear()
    report = run(rows(10), tmp_path / "out", retry_errors=True, **options)
    assert (report.errors, report.explained, report.done) == (0, 2, 10)
    assert canned.batches == [["What is 1?"], ["What is 8?"]]
    run(rows(10), tmp_path / "plain", **options)
    assert open_dataset(tmp_path / "out").to_arrow() == open_dataset(tmp_path / "plain").to_arrow()


def test_too_many_errors_stop_the_run_and_lose_nothing(canned, tmp_path):
    given = [{**row, "picture": 5 if k >= 4 else row["picture"]} for k, row in enumerate(rows(12))]
    with pytest.raises(dataset.TooManyErrors, match="max_errors: expected at most 2 error rows, got 4"):
        run(given, tmp_path / "out", shard_rows=4, max_errors=2, **columns("memory"))
    assert len(open_dataset(tmp_path / "out")) == 4
    assert run(given, tmp_path / "out", shard_rows=4, **columns("memory")).errors == 8


def test_a_second_writer_is_refused(canned, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(dataset.Locked, match="another process holds"):
        run(rows(2), tmp_path / "out", **columns("memory"))
    assert run(rows(2), tmp_path / "out", **columns("memory")).done == 2


def test_folders_of_others_are_left_alone(canned, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"output: expected an empty folder.*precious\.txt"):
            run(rows(2), tmp_path / "out", overwrite=overwrite, **columns("memory"))
    with pytest.raises(ValueError, match="output: expected a folder"):
        run(rows(2), tmp_path / "out" / "precious.txt", **columns("memory"))
    with pytest.raises(ValueError, match="output: expected a folder that `tam-fast dataset` wrote"):
        open_dataset(tmp_path / "out")


def test_ids_that_are_not_unique(canned, tmp_path):
    given = rows(4)
    given[3]["name"] = "row 1"
    with pytest.raises(ValueError, match=r"id: expected ids that are unique, got 'row 1' in :1 and :3"):
        run(given, tmp_path / "out", **columns("memory"))


def test_a_word_as_prompt_must_be_a_column(canned, tmp_path):
    with pytest.raises(ValueError, match=r"prompt: expected a sentence or one of the columns name, .*got 'qestion'"):
        run(rows(2), tmp_path / "out", image="picture", prompt="qestion")
    run(rows(2), tmp_path / "out", image="picture", prompt="What?")
    assert canned.batches == [["What?", "What?"]]


@pytest.mark.parametrize(
    "wrong",
    [{"maps": "all"}, {"engine": "spark"}, {"maps_format": "int8"}, {"shard_rows": 0}, {"batch_size": True}],
)
def test_arguments_that_are_none(canned, tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        run(rows(2), tmp_path / "out", **columns("memory"), **wrong)
    with pytest.raises(TypeError, match="workers: expected none"):
        run(rows(2), tmp_path / "out", workers=2, **columns("memory"))
    with pytest.raises(ValueError, match="input: expected at least one row"):
        run([], tmp_path / "out")


def test_parts_are_read_by_others(canned, tmp_path):
    import pyarrow.compute as pc

    run(rows(5), tmp_path / "out", shard_rows=2, **columns("memory"))
    opened = open_dataset(tmp_path / "out")
    some = opened.to_arrow(pc.field("id") == "row 3")
    assert some["id"].to_pylist() == ["row 3"]
    levels = np.frombuffer(some["maps"][0].as_py()[0], dtype=np.uint8)
    assert levels.tolist() == (opened["row 3"].maps.maps[0] * 255).round().int().tolist()
    pandas = pytest.importorskip("pandas")
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert pandas.concat(map(pandas.read_parquet, parts))["text"].nunique() == 1


def test_an_index_is_made_again_where_there_is_none(canned, tmp_path):
    run(rows(5), tmp_path / "out", shard_rows=2, **columns("memory"))
    kept = (tmp_path / "out" / "index.parquet").read_bytes()
    (tmp_path / "out" / "index.parquet").unlink()
    opened = open_dataset(tmp_path / "out")
    assert opened.ids == [f"row {k}" for k in range(5)]
    assert not (tmp_path / "out" / "index.parquet").exists()
    run(rows(5), tmp_path / "out", shard_rows=2, **columns("memory"))
    assert (tmp_path / "out" / "index.parquet").read_bytes() == kept


def test_rows_that_are_not_there(canned, tmp_path):
    run(rows(2), tmp_path / "out", **columns("memory"))
    opened = open_dataset(tmp_path / "out")
    with pytest.raises(KeyError, match="none of the 2 rows"):
        opened["nothing"]
    for number in (2, -3):
        with pytest.raises(IndexError, match="from 0 to 1"):
            opened[number]
    with pytest.raises(TypeError, match="key: expected an id or a number"):
        opened[1.5]
