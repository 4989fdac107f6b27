"""Selection: automatic, visible, and refused where it cannot be met."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import tam_fast
from tam_fast import _C
from tam_fast.backends import selection


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


FILTER = "import torch, tam_fast; tam_fast.rank_gaussian_filter(torch.rand(2, 5, 5)); "


def test_info_is_complete_and_serialisable() -> None:
    info = json.loads(json.dumps(tam_fast.backend_info()))
    assert info["backend"] == "cpu"
    assert info["version"] == tam_fast.__version__ == _C.__version__
    assert info["isa"] in info["available_isas"]
    assert "serial" in info["available_isas"]
    assert info["threads"] == torch.get_num_threads()
    assert {"built", "usable", "why"} <= set(info["cuda"])
    assert {"built", "usable", "why"} <= set(info["triton"])
    assert set(info["operators"]) >= {"rank_gaussian_filter", "token_scores", "finish_maps"}


@pytest.mark.parametrize("isa", _C.available_isas())
def test_environment_forces_an_instruction_set(isa: str) -> None:
    result = run(
        FILTER + "from tam_fast import _C; print(_C.last_isa(), tam_fast.backend_info()['isa'])", TAM_FAST_ISA=isa
    )
    assert result.stdout.split() == [isa, isa], result.stderr


def test_an_unknown_instruction_set_is_an_error() -> None:
    result = run(FILTER, TAM_FAST_ISA="avx1024")
    assert result.returncode != 0
    assert "TAM_FAST_ISA" in result.stderr
    assert "avx1024" in result.stderr


def test_an_unknown_backend_is_an_error() -> None:
    result = run(FILTER, TAM_FAST_BACKEND="abacus")
    assert result.returncode != 0
    assert "TAM_FAST_BACKEND: expected one of cpu, cuda, triton, reference, got 'abacus'" in result.stderr


def test_environment_selects_the_reference() -> None:
    result = run(FILTER + "print(tam_fast.backend_info()['backend'])", TAM_FAST_BACKEND="reference")
    assert result.stdout.strip() == "reference", result.stderr


def test_the_reference_without_scipy_says_what_to_install() -> None:
    hide = "import sys; sys.modules['scipy'] = None; sys.modules['scipy.optimize'] = None; "
    result = run(hide + FILTER, TAM_FAST_BACKEND="reference")
    assert result.returncode != 0
    assert "scipy" in result.stderr.strip().splitlines()[-1]


def test_use_backend_restores_and_names() -> None:
    with tam_fast.use_backend("reference"):
        assert tam_fast.backend_info()["backend"] == "reference"
    assert tam_fast.backend_info()["backend"] == "cpu"
    with (
        pytest.raises(ValueError, match="name: expected one of cpu, cuda, triton, reference, got 'gpu'"),
        tam_fast.use_backend("gpu"),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test says is missing")
@pytest.mark.parametrize("name", ["cuda", pytest.param("triton", marks=pytest.mark.long)])
def test_an_explicit_choice_that_cannot_be_met_is_an_error(name: str) -> None:
    environment = {"TAM_FAST_BACKEND": name, "TRITON_INTERPRET": "0"}
    for code in (FILTER, "import tam_fast; tam_fast.backend_info()"):
        result = run(code, **environment)
        assert result.returncode != 0
        last = result.stderr.strip().splitlines()[-1]
        assert f"RuntimeError: TAM_FAST_BACKEND: expected a backend that can be used here, got '{name}': " in last


def test_cuda_kernels_refuse_tensors_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_unavailable", lambda name: "")
    message = "name_of_the_asker: expected a backend for the given tensors, got 'cuda': its kernels take CUDA tensors"
    with pytest.raises(ValueError, match=message):
        selection._explicit("cuda", "name_of_the_asker", torch.device("cpu"))


def test_the_default_for_gpus_says_what_it_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"cuda": "not built", "triton": "not installed"}
    monkeypatch.setattr(selection, "_unavailable", lambda name: reasons.get(name, ""))
    choice = selection._automatic(torch.device("cuda", 0))
    assert (choice.name, choice.resident) == ("cpu", False)
    assert choice.why == "cuda: not built; triton: not installed"


def test_importing_does_not_load_transformers() -> None:
    result = run(
        FILTER
        + "import sys; print([name for name in ('transformers', 'PIL', 'scipy', 'triton') if name in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr
