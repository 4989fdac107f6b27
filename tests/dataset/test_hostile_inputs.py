"""Inputs and disks that are not as they should be: what is refused, what is an error row, and that nothing is lost."""

import errno
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib

import pytest
from data_sets import Canned, add, job, picture, rows, write
from places import ROOT, TESTS

from tam_fast.dataset import open_dataset, run
from tam_fast.dataset.attempts import DEATHS, Attempts
from tam_fast.dataset.models import ModelSpec
from tam_fast.dataset.parts import part_path, read_part
from tam_fast.dataset.sources import Columns, open_source
from tam_fast.dataset.sources.tables import Tables
from tam_fast.dataset.worker import SpoiltError, Worker
from tam_fast.demo import load_demo

pytest.importorskip("pyarrow")

COLUMNS = {"id": "name", "image": "picture", "prompt": "question"}


@pytest.fixture
def canned(monkeypatch):
    explainer = Canned()
    monkeypatch.setattr(ModelSpec, "load", lambda self: explainer)
    monkeypatch.setattr("tam_fast.dataset.runs.described", lambda _: {"name": "canned"})
    return explainer


def errors(output):
    return dict(open_dataset(output).errors())


# Inputs ----------------------------------------------------------------------------------------------


def test_an_output_within_the_input_is_refused(canned, tmp_path):
    given = write(tmp_path / "in", "images", 2)
    with pytest.raises(ValueError, match="output: expected a folder outside the input"):
        run(given, given / "deep" / "out")
    assert not (given / "deep").exists()


def test_rows_of_another_input_are_not_added(canned, tmp_path):
    given, other = write(tmp_path / "in", "images", 3), write(tmp_path / "other", "images", 2)
    run(given, tmp_path / "out")
    (other / "0000.png").rename(other / "9.png")
    (other / "0001.png").unlink()
    with pytest.raises(ValueError, match=r"input: expected the files.*'0000\.png' is not in .*other"):
        run(other, tmp_path / "out")
    with pytest.raises(ValueError, match="images, now memory"):
        run([{"image": picture(1)}], tmp_path / "out")
    # The same files at another place are the same input.
    given.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "out").explained == 0


def test_texts_that_are_none(canned, tmp_path):
    """Escapes in JSON make halves of characters, which no file of text holds."""
    for name in ("a", "b", "ü日本"):
        (tmp_path / f"{name}.png").write_bytes(picture(1))
    lines = [
        r'{"name": "\ud800", "picture": "a.png", "question": "What?"}',
        r'{"name": "x", "picture": "b.png", "question": "Wh\udfffat?"}',
        r'{"name": "\ud83d\ude00", "picture": "ü日本.png", "question": "What?"}',
        r'{"name": "z", "picture": "\ud800.png", "question": "What?"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="halves of characters"):
        run(tmp_path / "rows.jsonl", tmp_path / "out", **COLUMNS)
    report = run(tmp_path / "rows.jsonl", tmp_path / "out", image="picture", prompt="question")
    assert (report.done, report.errors) == (4, 2)
    assert set(errors(tmp_path / "out")) == {"rows.jsonl:1", "rows.jsonl:3"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no names that are no text")
def test_names_of_files_that_are_no_text(canned, tmp_path):
    given = write(tmp_path / "in", "images", 1)
    (given / "日本 é.png").write_bytes(picture(2))
    assert run(given, tmp_path / "out").done == 2
    assert "日本 é.png" in open_dataset(tmp_path / "out")
    (given / os.fsdecode(b"\xff\xfe.png")).write_bytes(picture(3))
    with pytest.raises(ValueError, match=r"input: expected names of files in UTF-8, got b'\\xff\\xfe\.png'"):
        run(given, tmp_path / "out")


def test_a_folder_of_nothing(canned, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    with pytest.raises(ValueError, match="got none of them"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_images_a_row_of_a_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    five = [picture(k) for k in range(5)]
    struct_of = {"bytes": five[0], "path": None}
    table = pa.table({"image": [five, [], None], "more": [struct_of, struct_of, None]})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = open_source(tmp_path / "rows.parquet")
    (file,) = source.files()
    found = source.read(file, 0, 3)
    assert found[0].images == tuple(five)
    assert "expected at least one" in found[1].error
    assert "NoneType" in found[2].error
    source = open_source(tmp_path / "rows.parquet", Columns(image="image,more"))
    assert source.read(file, 0, 1)[0].images == (*five, five[0])


def test_members_that_stand_twice(tmp_path):
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        add(archive, "a.png", picture(1))
        add(archive, "a.PNG", picture(2))
        add(archive, "b.png", picture(3))
    source = open_source(tmp_path / "rows.tar")
    (file,) = source.files()
    twice, fine = source.read(file, 0, 2)
    assert "a second 'a.PNG'" in twice.error
    assert fine.images == (picture(3),)


def test_extension_types_within_columns_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    inner = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    for column in (pa.ListArray.from_arrays([0, 1], inner), pa.StructArray.from_arrays([inner], ["bytes"])):
        pq.write_table(pa.table({"image": column}), tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match="input: expected a plain type in column 'image'"):
            open_source(tmp_path / "rows.parquet").files()


def test_a_table_with_a_broken_page_loses_the_rows_of_its_group_alone(canned, tmp_path):
    import pyarrow.parquet as pq

    given = write(tmp_path / "in", "parquet", 9)
    chunk = pq.read_metadata(given).row_group(1).column(1)
    data = bytearray(given.read_bytes())
    begin = min(at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at)
    data[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    given.write_bytes(data)
    report = run(given, tmp_path / "out", image="picture", prompt="question", shard_rows=4)
    assert (report.done, report.errors) == (9, 3)
    found = errors(tmp_path / "out")
    assert list(found) == [f"rows.parquet:{k}" for k in (3, 4, 5)]
    assert all(message.startswith("input: expected row ") for message in found.values())


@pytest.mark.parametrize("form", ["tar", "jsonl", "arrow"])
def test_a_file_that_is_gone_is_error_rows(canned, tmp_path, form):
    given = write(tmp_path / "in", form, 5)
    work = job(given, tmp_path / "out", image="png" if form == "tar" else "picture")
    given.unlink()
    found = [row for shard in work.plan.shards() for row in Worker(work, canned).read(shard)]
    assert [row.id for row in found] == [f"{given.name}:{k}" for k in range(5)]
    assert all(row.error.startswith("input: expected row ") for row in found)


def test_rows_of_a_file_that_became_shorter_are_error_rows(canned, tmp_path):
    given = write(tmp_path / "in", "jsonl", 5)
    work = job(given, tmp_path / "out", image="picture")
    given.write_text("".join(given.read_text().splitlines(keepends=True)[:2]))
    work = job(_Shorter(work.source), tmp_path / "out")
    found = [row for shard in work.plan.shards() for row in Worker(work, canned).read(shard)]
    assert [bool(row.error) for row in found] == [False, False, True, True, True]
    assert "a file that ends before row 4" in found[-1].error


class _Shorter:
    """A source whose file was longer when it was planned."""

    kind = "lines"

    def __init__(self, source):
        self._source = source

    def files(self):
        from dataclasses import replace

        return [replace(file, rows=5) for file in self._source.files()]

    def read(self, file, start, stop):
        self._source._begins.cache_clear()
        return [row for k in range(start, min(stop, 2)) for row in self._source.read(file, k, k + 1)]


def test_files_that_are_known_are_not_opened_again(canned, tmp_path, monkeypatch):
    given = write(tmp_path / "in", "parquet", 4)
    run(given, tmp_path / "out", image="picture")
    monkeypatch.setattr(Tables, "_read_bounds", lambda *_: pytest.fail("opened"))
    assert run(given, tmp_path / "out", image="picture").explained == 0


def test_rows_in_memory_that_cannot_be_had(canned, tmp_path):
    class Rows(list):
        def __getitem__(self, number):
            if number == 1:
                raise OSError("cannot identify image file")
            return super().__getitem__(number)

    report = run(Rows(rows(3)), tmp_path / "out", image="picture", prompt="question")
    assert (report.done, report.errors) == (3, 1)
    assert errors(tmp_path / "out") == {"1": "OSError: cannot identify image file"}


def bomb(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.long
def test_images_that_are_none_with_the_embedded_model(tmp_path):
    fine = picture(3, (64, 48))
    given = [
        {"image": bomb(40000, 40000)},
        {"image": [picture(k, (56, 56)) for k in range(5)]},
        {"image": b"no image"},
        {"image": fine[: len(fine) // 2]},
        {"image": fine, "q": " "},
        {"image": fine},
    ]
    given = [{"q": "What is it?", **row} for row in given]
    report = run(given, tmp_path / "out", model=load_demo(), prompt="q", explain={"max_new_tokens": 3})
    found = errors(tmp_path / "out")
    assert report.done == 6
    assert set(found) == {"0", "2", "3", "4"}
    assert "1600000000" in found["0"]
    assert len(open_dataset(tmp_path / "out")["1"].layout.grids) == 5


# Whose fault it is ------------------------------------------------------------------------------------


def test_an_error_that_names_no_request_is_the_right_rows(tmp_path):
    def fault(requests):
        if any(request["prompt"] == "What is 5?" for request in requests):
            raise RuntimeError("something in the batch")

    work = job(rows(8), tmp_path / "out", size=8, batch_size=8, **COLUMNS)
    (shard,) = work.plan.shards()
    Worker(work, Canned(fault)).explain(shard)
    found = read_part(part_path(work.output, shard))
    assert [record["status"] == "ok" for record in found] == [k != 5 for k in range(8)]


def test_a_device_that_is_spoilt_is_a_death_and_no_rows_fault(tmp_path):
    """After an illegal access every call fails: a million rows must not become errors for it."""
    work = job(rows(4), tmp_path / "out", batch_size=4, **COLUMNS)
    (shard,) = work.plan.shards()

    def fault(requests):
        if any(request["prompt"] == "What is 2?" for request in requests):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for _ in range(3 * DEATHS):
        with pytest.raises(SpoiltError):
            Worker(work, Canned(fault)).explain(shard)
    Worker(work, Canned(fault)).explain(shard)
    found = read_part(part_path(work.output, shard))
    assert [record["status"] == "ok" for record in found] == [True, True, False, True]
    assert "killed its worker" in found[2]["error"]


# Disks ------------------------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_death(tmp_path, monkeypatch):
    """However often it is tried meanwhile, no row is given up for it."""
    work = job(rows(1), tmp_path / "out", size=1, **COLUMNS)
    (shard,) = work.plan.shards()
    with monkeypatch.context() as patch:
        patch.setattr("tam_fast.dataset.worker.write_part", full)
        for _ in range(DEATHS + 2):
            with pytest.raises(OSError, match="No space"):
                Worker(work, Canned()).explain(shard)
    assert [span.deaths for span in Attempts(work.output / "attempts", 0).spans(1)] == [0]
    Worker(work, Canned()).explain(shard)
    assert read_part(part_path(work.output, shard))[0]["status"] == "ok"


def test_a_journal_that_cannot_be_written_makes_no_deaths_up(tmp_path, monkeypatch):
    attempts = Attempts(tmp_path, 0)
    (span,) = attempts.spans(1)
    for _ in range(DEATHS + 2):
        attempts.begin(span)
        with monkeypatch.context() as patch:
            patch.setattr("tam_fast.dataset.attempts.append_line", full)
            attempts.stopped()
    assert [span.deaths for span in attempts.spans(1)] == [0]


def test_a_part_that_cannot_be_written_is_no_death_of_the_next(canned, tmp_path, monkeypatch):
    """Which is explained while the part is written."""
    from tam_fast.dataset import worker

    options = {**COLUMNS, "shard_rows": 2}
    plain = worker.write_part
    monkeypatch.setattr(worker, "write_part", lambda path, *_: full() if "00000" in path.name else plain(path, *_))
    for _ in range(DEATHS + 2):
        with pytest.raises(OSError, match="No space"):
            run(rows(6), tmp_path / "out", **options)
    journals = tmp_path / "out" / "attempts"
    assert all(span.deaths == 0 for number in range(3) for span in Attempts(journals, number).spans(2))
    monkeypatch.setattr(worker, "write_part", plain)
    report = run(rows(6), tmp_path / "out", **options)
    assert (report.done, report.errors) == (6, 0)


def test_parts_whose_times_changed_are_looked_at_and_count(canned, tmp_path):
    given = write(tmp_path / "in", "images", 5)
    run(given, tmp_path / "out", shard_rows=2)
    for path in (tmp_path / "out").iterdir():
        os.utime(path, (0, 0))
    canned.batches.clear()
    assert run(given, tmp_path / "out", shard_rows=2).explained == 0
    assert len(open_dataset(tmp_path / "out")) == 5
    assert canned.batches == []


def test_parts_of_another_run_are_not_read(canned, tmp_path):
    given = write(tmp_path / "in", "images", 4)
    run(given, tmp_path / "out", shard_rows=2)
    run(given, tmp_path / "other", shard_rows=2, prompt="Why?")
    part = tmp_path / "other" / "part-00001.parquet"
    (tmp_path / "out" / "part-00001.parquet").write_bytes(part.read_bytes())
    assert len(open_dataset(tmp_path / "out")) == 2


def test_deaths_of_a_retry_are_counted(canned, tmp_path):
    """A row that was an error, and now kills its worker, does not do so for ever."""

    class Death(BaseException):
        pass

    def broken(requests):
        for k, request in enumerate(requests):
            if request["prompt"] == "What is 2?":
                raise ValueError(f"requests[{k}]: broken")

    canned.fault = broken
    options = {**COLUMNS, "shard_rows": 4}
    assert run(rows(6), tmp_path / "out", **options).errors == 1

    def deadly(requests):
        if any(request["prompt"] == "What is 2?" for request in requests):
            raise Death

    canned.fault = deadly
    plain, deaths = Attempts.stopped, 0
    Attempts.stopped = lambda self: None  # as if the process were gone
    try:
        while True:
            try:
                report = run(rows(6), tmp_path / "out", retry_errors=True, **options)
                break
            except Death:
                deaths += 1
                assert deaths < 30
    finally:
        Attempts.stopped = plain
    assert (report.done, report.errors) == (6, 1)
    assert "killed its worker" in errors(tmp_path / "out")["row 2"]
    canned.fault = lambda _: None
    report = run(rows(6), tmp_path / "out", retry_errors=True, **options)
    assert (report.errors, report.explained) == (0, 1)
    assert not list((tmp_path / "out" / "attempts").iterdir())


_ON_A_SMALL_DISK = """
import json, os, subprocess, sys
from pathlib import Path
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=True)
import tam_fast.dataset.runs as runs
from data_sets import Canned, rows
from tam_fast.dataset import open_dataset, run
from tam_fast.dataset.models import ModelSpec
ModelSpec.load = lambda self: Canned()
runs.described = lambda _: {"name": "canned"}
options = {"id": "name", "image": "picture", "prompt": "question", "shard_rows": 100}
filler, told = folder / "filler", []
try:
    with filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
except OSError:
    os.truncate(filler, filler.stat().st_size - 8 * 4096)
for _ in range(6):
    try:
        run(rows(400), folder / "out", **options)
        told.append("fits")
    except OSError as error:
        told.append(error.strerror)
filler.unlink()
report = run(rows(400), folder / "out", **options)
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
assert len(open_dataset(folder / "out")) == 400
try:
    run(rows(400), folder / "out", **options)
    told.append("wrote to what is read-only")
except OSError as error:
    told.append(error.strerror)
print(json.dumps([told, report.done, report.errors]))
"""


@pytest.mark.long
def test_a_disk_that_is_full_and_then_read_only(tmp_path):
    """A real one, in memory."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts need a namespace of one's own (unshare -rm), which this system refuses")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = ["unshare", "-rm", sys.executable, "-c", _ON_A_SMALL_DISK, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    told, done, failed = json.loads(found.stdout)
    assert (done, failed) == (400, 0)
    assert told[-1] == "Read-only file system"
    assert set(told[:-1]) == {"No space left on device"}
