"""The engine of a Ray cluster: :func:`explain_on_ray`.

Ray schedules, and that is all: an item is the number of a shard, a worker explains it and writes its part as the engine
of one process does, and what comes back are plain numbers. Ray runs what died again without end; the journals of
:mod:`tam_fast.dataset.attempts` see to it that this ends.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tam_fast.dataset.durable import UNFINISHED
from tam_fast.dataset.manifest import Manifest
from tam_fast.dataset.models import ModelSpec, described, versions
from tam_fast.dataset.needed import need
from tam_fast.dataset.plan import Shard
from tam_fast.dataset.sources import Columns, open_source
from tam_fast.dataset.worker import ATTEMPTS, Job, SpoiltError, Worker

__all__ = ["check_options", "explain_on_ray", "share"]

_STOP = "stop"
"""A file among the journals; once it is there, workers begin no other shard."""

_SHARES = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1)
_PROBE_SECONDS = 180.0

Given = tuple[str, Columns, bool]
"""Path, columns and whether paths may lead outside: what a worker opens the input by."""


def check_options(workers: Any = None, gpus_per_worker: Any = None, address: Any = None) -> None:
    """Check the options of the engine, and that Ray is there.

    Raises
    ------
    ValueError, TypeError
        If one is not what is expected.
    ModuleNotFoundError
        If Ray is missing (extra ``ray``).
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers: expected a whole number of at least 1, got {workers!r}")
    number = isinstance(gpus_per_worker, (int, float)) and not isinstance(gpus_per_worker, bool)
    if gpus_per_worker is not None and not (number and 0 <= gpus_per_worker < float("inf")):
        raise ValueError(f"gpus_per_worker: expected a number of at least 0, got {gpus_per_worker!r}")
    if address is not None and (not isinstance(address, str) or not address):
        raise ValueError(f"address: expected HOST:PORT of a Ray cluster, got {address!r}")
    need("ray", "ray")


def share(cpus: Sequence[float], workers: int) -> float:
    """Choose how many CPUs each worker holds, so that wherever Ray puts them one node has a whole CPU left.

    Reading and handing on is done by tasks of one CPU; where the workers hold all of them, Ray waits without a word.

    Parameters
    ----------
    cpus : sequence of float
        Of each node.
    workers : int

    Raises
    ------
    ValueError
        If there is no such share.
    """
    for part in _SHARES:
        fit = sum(int(count / part + 1e-9) for count in cpus)
        if fit >= workers and sum(cpus) - workers * part >= len(cpus):
            return part
    raise ValueError(
        f"workers: expected a pool that leaves a CPU to Ray itself, without which it waits for ever, got {workers} on "
        f"{len(cpus)} nodes of {sum(cpus):g} CPUs together"
    )


def explain_on_ray(
    job: Job,
    spec: ModelSpec,
    shards: Sequence[Shard],
    finished: Callable[[int, int], None],
    stop: threading.Event,
    given: Given,
    config: Mapping[str, Any],
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
) -> None:
    """Explain shards on the workers of a Ray cluster, one of this machine's own if no address is given.

    Parameters
    ----------
    job, spec, shards, finished, stop
        As :func:`tam_fast.dataset.local.explain_here`; `finished` is told of whole shards.
    given : (str, Columns, bool)
        What the workers open the input by.
    config : mapping
        Of the manifest; a worker whose model is another refuses to work.
    workers : int, optional
        As many as there are GPUs for, or 1.
    gpus_per_worker : float, optional
        1 where the cluster has GPUs, else 0.
    address : str, optional

    Raises
    ------
    ValueError
        If the pool does not fit the cluster, a node does not see the output or the input, or has other versions.
    """
    output = Path(os.path.realpath(job.output))
    marker = output / ATTEMPTS / _STOP
    marker.parent.mkdir(exist_ok=True)
    marker.unlink(missing_ok=True)
    with _cluster(address, workers) as ray, _watched(stop, marker):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        _check_nodes(ray, nodes, output, given[0])
        gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
        each = gpus_per_worker if gpus_per_worker is not None else float(gpus > 0)
        count = workers or (max(1, int(gpus / each)) if each else 1)
        if each * count > gpus:
            raise ValueError(f"gpus_per_worker: expected at most {gpus:g} GPUs together, got {count} times {each:g}")
        part = share([cpus for node in nodes if (cpus := node["Resources"].get("CPU", 0.0)) > 0], count)
        if each:
            part = min(part, 1.0)
        arguments: dict[str, Any] = {
            "output": str(output),
            "spec": spec,
            "given": given,
            "arguments": dict(job.arguments),
            "batch_size": job.batch_size,
            "config": dict(config),
        }
        rows = {shard.number: shard.rows for shard in shards}
        data = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=1,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=part,
            num_gpus=each or None,
        )
        for receipt in data.iter_rows():
            if receipt["rows"]:
                finished(int(receipt["rows"]), int(receipt["errors"]))


class _Actor:
    """A process of the pool: loads the model once, and explains a shard a call."""

    def __init__(
        self,
        output: str,
        spec: ModelSpec,
        given: Given,
        arguments: Mapping[str, Any],
        batch_size: int,
        config: Mapping[str, Any],
    ) -> None:
        folder = Path(output)
        path, columns, allow_outside = given
        manifest = Manifest.read(folder)
        explainer = spec.load()
        mine = dict(described(explainer))
        if mine != config["model"]:
            raise ValueError(f"model: expected the one of the manifest on each node, got {mine}")
        source = open_source(path, columns, allow_outside=allow_outside)
        kept, kept_format = config["maps"], config["maps_format"]
        job = Job(folder, manifest.plan, source, manifest.digest, arguments, batch_size, kept, kept_format)
        self._shards = {shard.number: shard for shard in manifest.plan.shards()}
        self._worker = Worker(job, explainer)
        self._stop = folder / ATTEMPTS / _STOP

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        (number,) = (int(item) for item in batch["item"])
        if self._stop.exists():
            return {"shard": [number], "rows": [0], "errors": [0]}
        try:
            receipt = self._worker.explain(self._shards[number])
        except SpoiltError:
            # Another process can go on; Ray starts one.
            os._exit(1)
        return {"shard": [receipt.shard], "rows": [receipt.rows], "errors": [receipt.errors]}


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Join a cluster, or start one of one's own: on the loopback, without dashboard, with a token."""
    if address is None and "ray" not in sys.modules:
        # Read when Ray is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = _imported("ray")
    data = _imported("ray.data")
    if ray.is_initialized():
        if address is not None:
            raise ValueError("address: expected none in a process that has joined a Ray cluster already")
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address is None:
        cores = os.cpu_count() or 1
        # More than there are, if need be: one is for Ray's own tasks, which are short.
        ray.init(
            address="local",
            num_cpus=max(cores, (workers or 1) + 1),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    else:
        host = address.rpartition(":")[0]
        # Ray takes the machine's own address for a loopback one, unless it is told.
        own = {"_node_ip_address": host} if host.startswith("127.") else {}
        ray.init(address=address, **own, **quiet)
        if not _has_token():
            warnings.warn(
                f"the Ray cluster at {address} asks for no token: whoever reaches its ports runs what they like there "
                f"(RAY_AUTH_MODE=token on each of its nodes)",
                stacklevel=2,
            )
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _has_token() -> bool:
    try:
        found = _imported("ray._private.authentication.authentication_utils").is_token_auth_enabled()
    except (ImportError, AttributeError):
        return os.environ.get("RAY_AUTH_MODE") == "token"
    return bool(found)


def _imported(name: str) -> Any:
    """Import a module of Ray, which the types of this package do not depend on."""
    return importlib.import_module(name)


@contextlib.contextmanager
def _watched(stop: threading.Event, marker: Path) -> Iterator[None]:
    """Turn the event into a file that workers on other machines see too."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if stop.is_set():
                with contextlib.suppress(OSError):
                    marker.touch()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)


def _check_nodes(ray: Any, nodes: Sequence[Mapping[str, Any]], output: Path, given: str) -> None:
    """Ask each node for its versions, and whether it sees output and input.

    Raises
    ------
    ValueError
        If one differs, with its name.
    """
    on_node = _imported("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    mine = {"python": ".".join(map(str, sys.version_info[:3])), **versions()}
    probe = output / f".probe.{secrets.token_hex(8)}{UNFINISHED}"

    def look(path: str, given: str, names: list[str]) -> tuple[bool, bool, dict[str, str]]:
        # Where the node has not even this package, nothing of it may be needed to say so.
        import sys
        from contextlib import suppress
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        found = {"python": ".".join(map(str, sys.version_info[:3]))}
        for name in names:
            found[name] = "none"
            with suppress(PackageNotFoundError):
                found[name] = version(name)
        return Path(path).is_file(), Path(given).exists(), found

    ask = ray.remote(num_cpus=0, max_retries=1)(look)
    try:
        probe.touch()
        asked = {
            node["NodeID"]: ask.options(scheduling_strategy=on_node(node["NodeID"], soft=False)).remote(
                str(probe), given, [name for name in mine if name != "python"]
            )
            for node in nodes
        }
        answers = dict(zip(asked, ray.get(list(asked.values()), timeout=_PROBE_SECONDS), strict=True))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    for node in nodes:
        sees_output, sees_input, found = answers[node["NodeID"]]
        name = f"node {node['NodeManagerAddress']}"
        if not sees_output:
            raise ValueError(f"output: expected a folder that each node sees, {name} does not see {output}")
        if not sees_input:
            raise ValueError(f"input: expected a path that each node sees, {name} does not see {given}")
        other = [f"{key} {found[key]}, here {mine[key]}" for key in mine if found[key] != mine[key]]
        if other:
            raise ValueError(f"address: expected the same versions on each node, {name} has {', '.join(other)}")
