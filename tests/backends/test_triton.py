"""The Triton backend: its kernels on a GPU or else interpreted, and what it says where it cannot serve."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from places import ROOT
from programs import check_tests

import tam_fast

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETING or torch.cuda.is_available():
    from backends.triton_cases import *  # noqa: F403


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**kept, **environment}
    )


if not INTERPRETING:
    # Triton decides at its first import whether functions are interpreted, hence a process of their own.
    @pytest.mark.long
    @pytest.mark.program(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), __file__),
        environment={"TRITON_INTERPRET": "1"},
    )
    def test_cases_under_the_interpreter(program: subprocess.CompletedProcess[str]) -> None:
        check_tests(program, at_least=200)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU; the cases run on it")
def test_operators_and_an_answer_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    # What tests/conftest.py imported is interpreted; the many cases have a process of their own.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    generator = torch.Generator().manual_seed(5)
    maps, hidden, classifier = (torch.rand(*size, generator=generator) for size in ((2, 4, 5), (14, 16), (9, 16)))
    layout = tam_fast.Layout([tam_fast.Grid(range(1, 7), 2, 3)], [8, 9], 11)
    ids = torch.tensor([0, *range(6), 7, 8, 1, 2, 3, 4, 5, 1])[:15]

    def everything() -> list[torch.Tensor]:
        answer = tam_fast.activation_maps(hidden, classifier, ids, layout)
        return [
            tam_fast.rank_gaussian_filter(maps),
            tam_fast.token_scores(hidden, classifier, [3, 3, 8]),
            tam_fast.least_squares_scale(maps, maps * 0.5),
            *tam_fast.estimated_causal_inference(maps[0], maps[1], maps[0, :, :4]),
            *(answer.maps, answer.relevance, answer.scale),
        ]

    expected = everything()
    with tam_fast.use_backend("triton"):
        for got, wanted in zip(everything(), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


def test_importing_tam_fast_does_not_import_triton() -> None:
    code = "import sys, tam_fast; tam_fast.rank_gaussian_filter; print('triton' in sys.modules)"
    result = run("-c", code)
    assert result.stdout.split() == ["False"], result.stderr


def test_without_triton_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['triton'] = None; import tam_fast.backends.triton"
    result = run("-c", code)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "needs Triton" in last
    assert "pip install 'tam-fast[gpu]'" in last


def test_without_a_device_info_says_so_and_operators_raise() -> None:
    code = (
        "import torch; from tam_fast.backends import triton as b; i = b.info(); print(i['available'], i['why']);"
        "b.rank_gaussian_filter([torch.ones(3, 3)], 3)"
    )
    result = run("-c", code, CUDA_VISIBLE_DEVICES="")
    assert result.stdout.startswith("False torch finds no CUDA device"), result.stdout + result.stderr
    assert result.returncode != 0
    assert "expected CUDA tensors" in result.stderr
    assert "got tensors on cpu" in result.stderr
