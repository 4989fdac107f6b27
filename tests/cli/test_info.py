"""The command ``info``."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest_cli import assert_fails, run

import tam_fast


def test_info() -> None:
    result = run("info")
    assert result.exit_code == 0, result.stderr
    assert ["versions.torch", torch.__version__] in [line.split() for line in result.stdout.splitlines()]
    document = json.loads(run("info", "--json").stdout)
    assert document["tam-fast"] == tam_fast.__version__
    assert document["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert document["backend"] == json.loads(json.dumps(tam_fast.backend_info()))
    assert any(device.startswith("cpu") for device in document["devices"])


def test_info_of_a_broken_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("TAM_FAST_ISA: expected one of serial, avx2, got 'x'")

    monkeypatch.setattr("tam_fast.backends.selection.backend_info", refuse)
    assert_fails(run("info"), 1, "TAM_FAST_ISA: expected one of serial, avx2, got 'x'")
