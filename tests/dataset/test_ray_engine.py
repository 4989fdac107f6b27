"""The engine of a Ray cluster: what is refused before it starts; and two real nodes, of which everything is killed."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from data_sets import rows, write
from places import ROOT, TESTS
from ray_rows import DEADLY, OPTIONS, Rows, Spec

from tam_fast.dataset import open_dataset, ray_engine, run, runs
from tam_fast.dataset.attempts import DEATHS
from tam_fast.dataset.manifest import Manifest
from tam_fast.dataset.models import ModelSpec
from tam_fast.dataset.sources import Columns
from tam_fast.dataset.worker import SpoiltError
from tam_fast.explain import Explainer

pytest.importorskip("pyarrow")
# Ray's own.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
]

COUNT = 24


# What needs no cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cpus, workers, expected",
    [
        ([2], 2, 0.5),
        ([2], 1, 1),
        ([8], 1, 4),
        ([8], 7, 1),
        ([8], 8, 0.5),
        ([4, 4, 4], 1, 4),  # no more than one node has
        ([4, 4], 6, 1),
        ([2, 2], 3, 0.5),
        ([64], 1, 16),
    ],
)
def test_workers_leave_a_cpu_wherever_they_are_put(cpus, workers, expected):
    part = ray_engine.share(cpus, workers)
    assert part == expected
    # However they are spread, some node keeps a whole one.
    assert sum(cpus) - workers * part >= len(cpus)


@pytest.mark.parametrize("cpus, workers", [([1], 1), ([2], 20), ([1, 1], 2), ([], 1)])
def test_pools_that_leave_none_are_refused(cpus, workers):
    with pytest.raises(ValueError, match="workers: expected a pool that leaves a CPU to Ray itself"):
        ray_engine.share(cpus, workers)


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": True}, {"gpus_per_worker": -1}, {"gpus_per_worker": "1"}, {"address": ""}]
)
def test_options_that_are_none(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        ray_engine.check_options(**wrong)


def test_what_other_processes_cannot_have(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "need", lambda *_: None)
    explainer = object.__new__(Explainer)
    with pytest.raises(TypeError, match="model: expected an id or a folder with engine='ray'"):
        run(tmp_path, tmp_path / "out", engine="ray", model=explainer)
    with pytest.raises(TypeError, match="input: expected a path with engine='ray'"):
        run(rows(2), tmp_path / "out", engine="ray")


def test_ray_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    with pytest.raises(ModuleNotFoundError, match=r"ray: expected the package, got none.*tam-fast\[ray\]"):
        run(tmp_path, tmp_path / "out", engine="ray")


def test_a_stop_reaches_workers_as_a_file(tmp_path):
    stop = threading.Event()
    with ray_engine._watched(stop, tmp_path / "stop"):
        assert not (tmp_path / "stop").exists()
        stop.set()
        until = time.monotonic() + 20
        while not (tmp_path / "stop").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert not (tmp_path / "stop").exists()


@pytest.fixture
def actor(tmp_path, monkeypatch):
    """A worker as Ray makes it, in this process, of a data set that was begun."""
    monkeypatch.setattr(runs, "spec_of", lambda *_: Spec())
    given, output, stop = write(tmp_path / "in", "parquet", 5), tmp_path / "out", threading.Event()
    stop.set()  # after one part
    assert run(given, output, stop=stop, **OPTIONS).done == 2
    manifest = Manifest.read(output)
    columns = Columns("name", "picture", "question")
    arguments = {
        "output": str(output),
        "spec": Spec(),
        "given": (str(given), columns, False),
        "arguments": {"prompt": "?"},
        "batch_size": 2,
        "config": manifest.config,
    }
    return output, arguments


def test_a_worker_writes_its_part_and_gives_numbers(actor):
    output, arguments = actor
    worker = ray_engine._Actor(**arguments)
    assert worker({"item": [2]}) == {"shard": [2], "rows": [1], "errors": [0]}
    assert open_dataset(output).ids == ["row 0", "row 1", "row 4"]
    # What was asked to stop begins nothing, and says so.
    (output / "attempts" / "stop").touch()
    assert worker({"item": [1]}) == {"shard": [1], "rows": [0], "errors": [0]}
    assert len(open_dataset(output)) == 3
    (output / "attempts" / "stop").unlink()
    assert worker({"item": [1]})["rows"] == [2]
    assert len(open_dataset(output)) == 5


def test_a_worker_of_another_model_refuses(actor):
    config = {**actor[1]["config"], "model": {"name": "other"}}
    with pytest.raises(ValueError, match="model: expected the one of the manifest on each node"):
        ray_engine._Actor(**{**actor[1], "config": config})


def test_a_worker_whose_device_is_spoilt_ends(actor, monkeypatch):
    def spoilt(*_):
        raise SpoiltError("CUDA error")

    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    worker = ray_engine._Actor(**actor[1])
    monkeypatch.setattr(worker._worker, "explain", spoilt)
    monkeypatch.setattr(ray_engine.os, "_exit", end)
    with pytest.raises(Ended, match="1"):
        worker({"item": [1]})


# Two nodes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on loopback addresses, with a token."""
    if "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    pytest.importorskip("ray", reason="needs Ray (extra ray)")
    from ray.cluster_utils import Cluster

    # Workers import what the tests do.
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{TESTS}"
    os.environ["OMP_NUM_THREADS"] = "1"
    small = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    made = Cluster(True, head_node_args={**small, "node_ip_address": "127.0.0.2", "include_dashboard": False})
    made.second = made.add_node(**small, node_ip_address="127.0.0.3")
    made.wait_for_nodes()
    yield made
    made.shutdown()


def driver(cluster, given, output, pids):
    command = [sys.executable, str(TESTS / "ray_rows.py"), cluster.address, str(given), str(output), str(pids)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait(process, done, seconds=150):
    until = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.05)


@pytest.mark.long
def test_driver_actor_and_node_are_killed_and_a_row_kills_its_worker(cluster, tmp_path, monkeypatch):
    given, output, pids = write(tmp_path / "in", "parquet", COUNT), tmp_path / "out", tmp_path / "pids"
    pids.mkdir()

    def parts():
        return len(list(output.glob("part-*.parquet")))

    first = driver(cluster, given, output, pids)
    wait(first, lambda: parts() >= 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert parts() < COUNT // 2

    before = {path.name for path in pids.iterdir()}
    second = driver(cluster, given, output, pids)
    wait(second, lambda: {path.name for path in pids.iterdir()} - before)
    for name in {path.name for path in pids.iterdir()} - before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(name), signal.SIGKILL)
        break
    wait(second, lambda: parts() >= 5)
    cluster.remove_node(cluster.second, allow_graceful=False)
    told, _ = second.communicate(timeout=240)
    assert second.returncode == 0, told
    assert f"rows={COUNT}, done={COUNT}, errors=1" in told

    monkeypatch.setattr(ModelSpec, "load", lambda self: Rows())
    run(given, tmp_path / "local", **OPTIONS)
    found, expected = open_dataset(output).to_arrow().to_pylist(), open_dataset(tmp_path / "local").to_arrow()
    assert [record["id"] for record in found] == [f"row {k}" for k in range(COUNT)]
    for record, other in zip(found, expected.to_pylist(), strict=True):
        if record["prompt"] is None:
            assert (record["id"], record["error"]) == ("row 13", f"killed its worker {DEATHS} times, by itself")
        else:
            assert record == other
    assert DEADLY.endswith("13?")
    left = {path.name.partition("-")[0] for path in output.iterdir()}
    assert left == {".lock", "attempts", "files", "index.parquet", "manifest.json", "part"}
    assert not list((output / "attempts").iterdir())


@pytest.mark.long
def test_clusters_that_do_not_fit_are_refused(cluster, tmp_path):
    """And what is right with this one is not."""
    given, output = write(tmp_path / "in", "images", 1), tmp_path / "out"
    output.mkdir()
    with warnings.catch_warnings(record=True) as told, ray_engine._cluster(cluster.address, None) as joined:
        nodes = [node for node in joined.nodes() if node["Alive"]]
        assert cluster.address.partition(":")[0] in {node["NodeManagerAddress"] for node in nodes}
        ray_engine._check_nodes(joined, nodes, output, str(given))
        assert not list(output.iterdir())
        with pytest.raises(ValueError, match="input: expected a path that each node sees"):
            ray_engine._check_nodes(joined, nodes, output, str(tmp_path / "nothing"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_engine, "versions", lambda: {"torch": "0.1"})
            with pytest.raises(ValueError, match=r"address: expected the same versions.*torch .*, here 0\.1"):
                ray_engine._check_nodes(joined, nodes, output, str(given))
        with pytest.MonkeyPatch.context() as patch:
            # As where the folder is another disk's on that node: what is written here is not there.
            patch.setattr(ray_engine.Path, "touch", lambda self: None)
            with pytest.raises(ValueError, match="output: expected a folder that each node sees"):
                ray_engine._check_nodes(joined, nodes, output, str(given))
        again = ray_engine._cluster(cluster.address, None)
        with pytest.raises(ValueError, match="address: expected none in a process that has joined"), again:
            pass
    assert not joined.is_initialized()
    # It has a token.
    assert not any("asks for no token" in str(warning.message) for warning in told)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        patch.setattr(ray_engine, "_has_token", lambda: False)
        warnings.simplefilter("always")
        with ray_engine._cluster(cluster.address, None):
            pass
    assert any("asks for no token" in str(warning.message) for warning in told)
