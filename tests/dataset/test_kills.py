"""Killed at any moment: nothing is lost, nothing stands twice."""

import builtins
import io
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
from data_sets import Canned, rows, write
from places import ROOT, TESTS

from tam_fast.dataset import open_dataset, run
from tam_fast.dataset.models import ModelSpec

pytest.importorskip("pyarrow")

COUNT, SHARD = 11, 4
OPTIONS = {"shard_rows": SHARD, "batch_size": 2, "id": "name", "image": "picture", "prompt": "question"}


def explain_all(output):
    """A run without a model: what is tested is what stands on the disk."""
    ModelSpec.load = lambda self: Canned()
    import tam_fast.dataset.runs as runs

    runs.described = lambda _: {"name": "canned"}
    return run(rows(COUNT), output, **OPTIONS)


class _Deadly:
    """Ends the process, without a word, at the n-th thing that it does to the disk: before, after, or amid it."""

    def __init__(self, number, when):
        self.left, self.when = number, when

    def around(self, act, *arguments, **options):
        self.left -= 1
        if self.left == 0 and self.when == "before":
            os._exit(9)
        if self.left == 0 and self.when == "amid" and getattr(act, "__name__", "") == "write":
            act(arguments[0][: len(arguments[0]) // 2])
            act.__self__.flush()
            os._exit(9)
        try:
            return act(*arguments, **options)
        finally:
            if self.left == 0:
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


def killed(output, number, when):
    def act():
        _Deadly(number, when).install()
        explain_all(output)

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


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.long), 17], ids=["every operation", "every 17th operation"]
)
@pytest.mark.parametrize("when", ["before", "after", "amid"])
def test_a_kill_around_any_operation_on_the_disk(tmp_path, whole, step, when):
    number = 1
    while True:
        output = tmp_path / str(number)
        code = killed(output, number, when)
        assert code in (0, 9)
        check(output, whole)
        if code == 0 and when != "amid":
            break
        if code == 0 and number > 150:  # amid is at writes alone: most others pass
            break
        number += step
    assert number > 30


@pytest.mark.long
def test_kills_upon_kills(tmp_path, whole):
    """Each run is killed a bit later than it was begun; in the end all is there."""
    for first in range(2, 40, 3):
        output = tmp_path / str(first)
        for more in range(6):
            killed(output, first + 7 * more, ("before", "after", "amid")[more % 3])
        check(output, whole)


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
