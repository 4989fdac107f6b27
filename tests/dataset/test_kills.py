"""Killed at any moment: nothing is lost, nothing stands twice."""

import builtins
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import pytest
from data_sets import Canned, rows, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from places import ROOT, TESTS

from tam_fast.dataset import open_dataset, run
from tam_fast.dataset.attempts import DEATHS
from tam_fast.dataset.models import ModelSpec

pytest.importorskip("pyarrow")

COUNT, SHARD = 11, 4
OPTIONS = {"shard_rows": SHARD, "batch_size": 2, "id": "name", "image": "picture", "prompt": "question"}


def explain_all(output, count=COUNT, fault=lambda _: None, **options):
    """A run without a model: what is tested is what stands on the disk."""
    ModelSpec.load = lambda self: Canned(fault)
    import tam_fast.dataset.runs as runs

    runs.described = lambda _: {"name": "canned"}
    return run(rows(count), output, **{**OPTIONS, **options})


class _Deadly:
    """Ends the process, without a word, at the n-th thing that it does to the disk: before, after, or amid it."""

    def __init__(self, number, when):
        self.number, self.when = number, when
        self.names = []
        self._lock = threading.Lock()

    def around(self, act, *arguments, **options):
        with self._lock:  # parts are written behind, in a thread of their own
            self.names.append(getattr(act, "__name__", ""))
            mine = len(self.names) == self.number
        if mine and self.when == "before":
            os._exit(9)
        if mine and self.when == "amid" and self.names[self.number - 1] == "write":
            act(arguments[0][: len(arguments[0]) // 2])
            act.__self__.flush()
            os._exit(9)
        try:
            return act(*arguments, **options)
        finally:
            if mine:
                os._exit(9)

    def wrapped(self, act):
        return lambda *arguments, **options: self.around(act, *arguments, **options)

    def install(self):
        for name in ("fsync", "replace", "unlink", "mkdir"):
            setattr(os, name, self.wrapped(getattr(os, name)))
        opened, deadly = io.open, self

        class Written:
            """An open file whose writes are counted."""

            def __init__(self, file):
                self._file = file

            def write(self, data):
                return deadly.around(self._file.write, data)

            def __getattr__(self, name):
                return getattr(self._file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self._file.close()

        def open_(file, mode="r", *arguments, **options):
            if not set(mode) & set("wax+"):
                return opened(file, mode, *arguments, **options)
            return Written(self.around(opened, file, mode, *arguments, **options))

        io.open = builtins.open = open_


def in_a_child(act):
    """Run something in a forked process; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(output, number, when, **options):
    def act():
        _Deadly(number, when).install()
        explain_all(output, **options)

    return in_a_child(act)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    assert in_a_child(lambda: explain_all(output)) == 0
    return open_dataset(output).to_arrow().sort_by("id")


def check(output, whole):
    """What stands there is right; and a run that goes on ends with all of it."""
    if (output / "manifest.json").exists():
        some = open_dataset(output).to_arrow()
        ids = some["id"].to_pylist()
        assert len(ids) == len(set(ids))
    assert in_a_child(lambda: explain_all(output)) == 0
    assert open_dataset(output).to_arrow().sort_by("id") == whole
    left = {path.name for path in output.iterdir()} - {".lock", "attempts", "index.parquet", "manifest.json"}
    assert {name.split("-")[0] for name in left} == {"files", "part"}
    assert len(left) == 1 + -(-COUNT // SHARD)
    assert not list((output / "attempts").iterdir())


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """Names of the operations on the disk of a run that is not killed."""
    folder = tmp_path_factory.mktemp("operations")

    def act():
        deadly = _Deadly(0, "never")
        deadly.install()
        explain_all(folder / "out")
        (folder / "names").write_text(" ".join(deadly.names))

    assert in_a_child(act) == 0
    return (folder / "names").read_text().split(" ")


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.long), 17], ids=["every operation", "every 17th operation"]
)
@pytest.mark.parametrize("when", ["before", "after", "amid"])
def test_a_kill_around_any_operation_on_the_disk(tmp_path, whole, operations, step, when):
    assert len(operations) > 50
    assert {"fsync", "replace", "write", "open"} <= set(operations)
    places = [k for k, name in enumerate(operations, 1) if when != "amid" or name == "write"]
    for number in places[::step]:
        output = tmp_path / str(number)
        # What two threads do may come in another order: the last ones may not come at all.
        assert killed(output, number, when) == 9 or number > len(operations) - 5
        check(output, whole)


@pytest.mark.long
def test_kills_upon_kills(tmp_path, whole):
    """Each run is killed a bit later than it was begun; in the end all is there."""
    for first in range(2, 40, 3):
        output = tmp_path / str(first)
        for more in range(6):
            killed(output, first + 7 * more, ("before", "after", "amid")[more % 3])
        check(output, whole)


@pytest.mark.long
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 9),
    size=st.integers(1, 5),
    batch_size=st.integers(1, 4),
    broken=st.sets(st.integers(0, 8), max_size=3),
    deadly=st.sets(st.integers(0, 8), max_size=1),
    kills=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["before", "after", "amid"])), max_size=3),
)
@example(count=4, size=1, batch_size=4, broken={1}, deadly={2}, kills=[])  # the shard before was blamed once
def test_any_input_under_any_kills(count, size, batch_size, broken, deadly, kills):
    """Rows that cannot be explained, one that kills its process, and kills from without: each row stands there once."""

    def fault(requests):
        for k, request in enumerate(requests):
            number = int(request["prompt"].removeprefix("What is ").removesuffix("?"))
            if number in deadly:
                os._exit(9)
            if number in broken:
                raise ValueError(f"requests[{k}]: broken")

    options = {"count": count, "fault": fault, "shard_rows": size, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        for number, when in kills:
            killed(output, number, when, **options)
        for _ in range(40):
            if in_a_child(lambda: explain_all(output, **options)) == 0:
                break
        found = open_dataset(output).to_arrow().to_pylist()
    assert [record["id"] for record in found] == [f"row {k}" for k in range(count)]
    for k, record in enumerate(found):
        if k in deadly:
            assert "killed its worker" in record["error"]
        elif k in broken:
            assert record["error"] == "ValueError: broken"
        else:
            # A kill from without may count as a row's death, and three of them alone give it up.
            assert record["status"] == "ok" or len(kills) >= DEATHS


@pytest.mark.long
def test_a_real_process_killed_at_random_moments(tmp_path):
    """The command, with the embedded model."""
    given = write(tmp_path / "in", "images", 12)
    command = [sys.executable, "-m", "tam_fast", "dataset", str(given), "--shard-rows", "2", "--max-new-tokens", "4"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    assert subprocess.run([*command, "-o", str(tmp_path / "whole")], check=False, **quiet).returncode == 0
    deaths = 0
    for attempt in range(4):
        process = subprocess.Popen([*command, "-o", str(tmp_path / "out")], **quiet)
        while process.poll() is None and not (tmp_path / "out" / "manifest.json").exists():
            time.sleep(0.05)
        try:
            # From the moment that it writes: loading the model is not what is tested.
            process.wait(0.2 * attempt if attempt < 3 else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            deaths += 1
            continue
        break
    assert process.returncode == 0
    assert deaths
    expected = open_dataset(tmp_path / "whole").to_arrow()
    assert open_dataset(tmp_path / "out").to_arrow().drop(["seconds"]) == expected.drop(["seconds"])
