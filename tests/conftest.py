"""Fixtures: every computing path of this machine, and the data beside the project."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings
from places import data_folder
from programs import Programs

import tam_fast
from tam_fast import _C

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    # Triton decides at its import whether kernels are interpreted, and torch and transformers may import it first.
    with pytest.MonkeyPatch.context() as _environment:
        _environment.setenv("TRITON_INTERPRET", "1")
        import tam_fast.backends.triton

settings.register_profile("tests", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

ISAS = tuple(_C.available_isas())
PATHS = (*(f"cpu-{isa}" for isa in ISAS), "reference")


_PROGRAMS = pytest.StashKey[Programs]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the programs of the tests that were selected."""
    programs = session.config.stash[_PROGRAMS] = Programs()
    for item in session.items:
        marker = item.get_closest_marker("program")
        if marker is not None and not session.config.option.collectonly:
            programs.add(item.nodeid, marker.args, marker.kwargs.get("environment", {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _PROGRAMS in config.stash:
        config.stash[_PROGRAMS].close()


@pytest.fixture
def program(request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """Wait for the program that the test's mark asks for, which may have run for a while."""
    return request.config.stash[_PROGRAMS].result(request.node.nodeid)


def _run_elsewhere(name: str) -> None:
    """Run an operator on another instruction set, so that `last_isa` cannot tell of an earlier test."""
    for other in ISAS:
        if other != name:
            _C.set_isa(other)
            tam_fast.rank_gaussian_filter(torch.ones(1, 1))
            return


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each instruction set of the machine, and prove that the set under test served it."""
    _run_elsewhere(request.param)
    _C.set_isa(request.param)
    try:
        yield request.param
        assert _C.last_isa() == request.param, "no kernel ran, or another instruction set served it"
    finally:
        _C.set_isa(None)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on every backend, and the compiled one on each instruction set."""
    backend, _, name = request.param.partition("-")
    if name:
        _run_elsewhere(name)
    _C.set_isa(name or None)
    try:
        with tam_fast.use_backend(backend):
            yield request.param
        if backend == "cpu":
            assert _C.last_isa() == name
    finally:
        _C.set_isa(None)


# Triton compiles where there is a GPU, and interprets where there is none.
INTERPRETED = pytest.param("triton-interpreted", marks=pytest.mark.long)
DEVICE_PATHS = ("cuda-emulated", *(("cuda", "triton") if torch.cuda.is_available() else (INTERPRETED,)))


@pytest.fixture(params=DEVICE_PATHS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Serve every operator by a backend of the GPU: there if there is one, and by its kernels' twins on the CPU."""
    backend, _, how = request.param.partition("-")
    if how == "emulated":
        from machines import cuda_modules

        module = cuda_modules.emulation()
        monkeypatch.setitem(sys.modules, "tam_fast._cuda", module)
        monkeypatch.setattr(tam_fast, "_cuda", module, raising=False)
        for name in [name for name in sys.modules if name == "tam_fast.backends.cuda"]:
            monkeypatch.delitem(sys.modules, name)
    elif how == "interpreted":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    place = torch.device("cpu" if how else "cuda:0")
    if how and not torch.cuda.is_available():
        # Beside a GPU it would be torch's accelerator in the GPU's stead.
        from machines import twin_device

        twin_device.serve(monkeypatch)
        place = twin_device.DEVICE
    try:
        with tam_fast.use_backend(backend):
            yield place
    finally:
        if how == "emulated":
            sys.modules.pop("tam_fast.backends.cuda", None)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore torch's number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of photographs, tokenizers and processors that lies beside a development checkout."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"needs the development data, and there is no {folder} (set TAM_FAST_TEST_DATA)")
    return folder
