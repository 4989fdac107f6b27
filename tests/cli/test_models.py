"""``tam-fast models``: the table of families, for people and for programs."""

from __future__ import annotations

import json

from conftest_cli import assert_fails, run

from tam_fast.models import support


def test_json_holds_every_model_type() -> None:
    result = run("models", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert list(found) == list(support())
    assert found["qwen2_vl"]["status"] == "verified"
    assert found["qwen2_vl"]["videos"] is True
    assert "learnt queries" in found["blip-2"]["reason"]


def test_table_and_reasons() -> None:
    lines = run("models").stdout.splitlines()
    (row,) = [line for line in lines if line.startswith("llava ")]
    assert row.split() == ["llava", "LLaVA-1.5", "verified", "fixed", "grid", "llava-hf/llava-1.5-7b-hf"]
    place = next(i for i, line in enumerate(lines) if line.startswith("impossible: ") and "mllama" in line)
    assert "cross-attention" in lines[place + 1]


def test_markdown_has_a_row_a_model_type() -> None:
    rows = run("models", "--markdown").stdout.splitlines()
    assert len(rows) == 2 + len(support())
    assert all(row.count("|") == 7 for row in rows)
    assert_fails(run("models", "--markdown", "--json"), 2, "--markdown")
