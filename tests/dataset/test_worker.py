"""One shard: batches, errors, memory, deaths."""

import pytest
from data_sets import Canned, job, picture, rows

from tam_fast.dataset.attempts import DEATHS, Attempts, Span
from tam_fast.dataset.durable import append_line, read_lines
from tam_fast.dataset.parts import part_path, read_part
from tam_fast.dataset.worker import Stopped, Worker

pytest.importorskip("pyarrow")

COLUMNS = {"id": "name", "image": "picture", "prompt": "question"}


def explained(given, tmp_path, explainer=None, **options):
    work = job(given, tmp_path / "out", **{**COLUMNS, **options})
    told = []
    worker = Worker(work, explainer or Canned(), finished=lambda rows, errors: told.append((rows, errors)))
    found = []
    for shard in work.plan.shards():
        receipt = worker.explain(shard)
        records = read_part(part_path(work.output, shard))
        assert receipt.rows == shard.rows == len(records)
        assert receipt.errors == sum(record["status"] != "ok" for record in records)
        found += records
    assert (sum(r for r, _ in told), sum(e for _, e in told)) == (
        len(found),
        sum(record["status"] != "ok" for record in found),
    )
    assert not list((work.output / "attempts").iterdir())
    assert not list(work.output.glob(".part-*"))
    return found


def plain(tmp_path, count=10):
    return explained(rows(count), tmp_path / "plain")


@pytest.mark.parametrize("size, batch_size", [(1, 1), (3, 2), (4, 8), (64, 3)])
def test_rows_are_the_same_whatever_runs_together(tmp_path, size, batch_size):
    found = explained(rows(10), tmp_path, size=size, batch_size=batch_size)
    assert found == plain(tmp_path)
    assert [record["id"] for record in found] == [f"row {k}" for k in range(10)]


def test_like_lengths_run_together(tmp_path):
    given = [{**row, "question": "long " * 20 if k % 2 else "short"} for k, row in enumerate(rows(4))]
    explainer = Canned()
    explained(given, tmp_path, explainer)
    assert explainer.batches == [["short"] * 2, ["long " * 20] * 2]


@pytest.mark.parametrize("before", [True, False])
def test_a_row_that_fails_fails_alone(tmp_path, before):
    """Found before the batch is run, as bad images are, or while it is."""

    def fault(requests):
        for k, request in enumerate(requests):
            if request["prompt"] == "What is 5?":
                error = ValueError(f"requests[{k}]: images: broken")
                if not before:
                    error.explanations = [explainer.explain(one) for one in requests[:k]]
                raise error

    explainer = Canned(fault)
    found = explained(rows(8), tmp_path, explainer, size=8, batch_size=4)
    assert [record["status"] == "ok" for record in found] == [k != 5 for k in range(8)]
    assert found[5]["error"] == "ValueError: images: broken"
    assert found[:5] + found[6:] == [r for k, r in enumerate(plain(tmp_path, 8)) if k != 5]


def test_batches_are_halved_where_memory_is_short(tmp_path):
    def fault(requests):
        if len(requests) > 2:
            raise MemoryError("requests[0]: not enough memory")

    explainer = Canned(fault)
    found = explained(rows(8), tmp_path, explainer, size=8, batch_size=8)
    assert found == plain(tmp_path, 8)
    assert sorted(map(len, explainer.batches)) == [2, 2, 2, 2, 4, 4, 8]


def test_a_row_that_is_too_large_by_itself_is_an_error(tmp_path):
    def fault(requests):
        if any(request["prompt"] == "What is 2?" for request in requests):
            raise MemoryError("no memory")

    found = explained(rows(4), tmp_path, Canned(fault), size=4, batch_size=4)
    assert [record["error"] for record in found] == [None, None, "MemoryError: no memory", None]


def test_rows_that_cannot_be_read(tmp_path):
    given = rows(3)
    given[1]["picture"] = "http://a/b.png"
    found = explained(given, tmp_path)
    assert [record["status"] for record in found] == ["ok", "error", "ok"]


def test_a_worker_that_is_stopped_writes_nothing(tmp_path):
    work = job(rows(4), tmp_path / "out", **COLUMNS)
    worker = Worker(work, Canned(), stop=lambda: True)
    (shard,) = work.plan.shards()
    with pytest.raises(Stopped):
        worker.explain(shard)
    assert not part_path(work.output, shard).exists()
    (span,) = Attempts(work.output / "attempts", 0).spans(4)
    assert span == Span(0, 4, 0)


# Deaths ----------------------------------------------------------------------------------------------


class Death(BaseException):
    """As if the process were gone: nothing after it is recorded."""


def deadly(which, monkeypatch):
    """An explainer that dies of some rows, in a process that then does nothing more."""

    def fault(requests):
        if any(request["prompt"] in which for request in requests):
            monkeypatch.setattr(Attempts, "stopped", lambda self: None)
            raise Death

    return Canned(fault)


@pytest.mark.parametrize("which", [{3}, {0, 7}, {1, 2, 3}, set(range(8))])
@pytest.mark.parametrize("batch_size", [3, *(pytest.param(size, marks=pytest.mark.long) for size in (1, 8))])
def test_rows_that_kill_are_given_up_and_no_others(tmp_path, monkeypatch, which, batch_size):
    work = job(rows(8), tmp_path / "out", size=8, batch_size=batch_size, **COLUMNS)
    worker = Worker(work, deadly({f"What is {k}?" for k in which}, monkeypatch))
    (shard,) = work.plan.shards()
    deaths = 0
    while True:
        try:
            worker.explain(shard)
            break
        except Death:
            deaths += 1
            assert deaths < 200
    found = read_part(part_path(work.output, shard))
    assert [record["status"] == "error" for record in found] == [k in which for k in range(8)]
    for k in which:
        assert found[k]["error"] == f"killed its worker {DEATHS} times, by itself"
    good = plain(tmp_path, 8)
    assert [r for k, r in enumerate(found) if k not in which] == [r for k, r in enumerate(good) if k not in which]
    # Each killed in spans of 8, 4, 2 and 1 rows, three times at most.
    assert deaths <= DEATHS * 4 * len(which)


def test_getting_further_is_no_death(tmp_path):
    attempts = Attempts(tmp_path, 0)
    for reached in range(1, 9):
        assert attempts.spans(10) == [Span(0, 10, 0 if reached == 1 else 1)]
        attempts.begin(Span(0, 10, 0))
        attempts.reached(reached)
    for deaths in (1, 2):
        assert attempts.spans(10) == [Span(0, 10, deaths)]
        attempts.begin(Span(0, 10, 0))
        attempts.reached(8)
    assert attempts.spans(10) == [Span(0, 5, 0), Span(5, 10, 0)]


def test_a_journal_that_was_cut_short_loses_the_last_line_alone(tmp_path):
    path = tmp_path / "journal"
    append_line(path, {"begin": [0, 4]})
    append_line(path, {"reached": 2})
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        append_line(path, {"begin": [0, 4]})
        found = read_lines(path)
        assert found[-1] == {"begin": [0, 4]}
        # What was whole is kept, with its line's end or without.
        assert len(found) == 1 + sum(end >= mark for mark in (len(lines[0]), len(lines[0]) + 1 + len(lines[1])))


def test_answers_and_prompts_reach_the_explainer(tmp_path):
    seen = []
    explainer = Canned(lambda requests: seen.extend(requests))
    given = [{"image": picture(1), "q": None, "a": "Yes."}, {"image": picture(2), "q": "Why?", "a": None}]
    work = job(given, tmp_path / "out", prompt="q", answer="a")
    (shard,) = work.plan.shards()
    Worker(work, explainer).explain(shard)
    assert {(one["prompt"], one.get("answer")) for one in seen} == {("What?", "Yes."), ("Why?", None)}
