"""Configurations of the Triton kernels: where they come from, how they are kept, and what a broken table does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tam_fast.backends.triton import tuning
from tam_fast.backends.triton.tuning import Configuration, Tuner

SIZES = (300, 1500, 2048)
KEY = "token_scores|bfloat16|9,11,11"
OTHER = Configuration({"BLOCK_U": 16, "BLOCK_P": 128, "BLOCK_C": 32}, 2, 5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's tables out of it."""
    monkeypatch.setenv("TAM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache"


def write(path: Path, configurations: Any, table_format: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": table_format, "configurations": configurations}))


def test_buckets_end_at_powers_of_two() -> None:
    assert tuning.bucket((0, 1, 2, 3, 4, 5, 1024, 1025)) == (0, 0, 1, 2, 2, 3, 10, 11)


def test_cache_then_shipped_tables_then_the_rule(cache: Path, tmp_path: Path) -> None:
    rule = Tuner("sm_90")
    assert rule.find("token_scores", "bfloat16", SIZES) == (
        tuning.default("token_scores", "bfloat16", (9, 11, 11)),
        False,
    )
    assert rule.info()[KEY]["from"] == "rule"
    write(tmp_path / "shipped" / "sm_90.json", {KEY: OTHER.as_json()})
    shipped = Tuner("sm_90")
    assert shipped.find("token_scores", "bfloat16", SIZES) == (OTHER, True)
    assert shipped.info()[KEY]["from"] == str(tmp_path / "shipped" / "sm_90.json")
    assert shipped.find("token_scores", "bfloat16", (3, 5, 7))[1] is False
    mine = Configuration({**OTHER.blocks, "BLOCK_P": 32}, 8, 2)
    write(cache / "tuning-sm_90.json", {KEY: mine.as_json()})
    cached = Tuner("sm_90")
    assert cached.find("token_scores", "bfloat16", SIZES) == (mine, True)
    assert cached.info()[KEY] == {**mine.as_json(), "from": str(cache / "tuning-sm_90.json")}
    assert Tuner("sm_80").find("token_scores", "bfloat16", SIZES)[1] is False


def test_every_kernel_has_a_rule_and_candidates_that_a_table_can_hold() -> None:
    for kernel in tuning.KERNELS:
        for window in (".1", ".3", ".7", ".9", ".15") if kernel.startswith(("rank", "finish")) else ("",):
            name = kernel + window
            for number_format in ("float32", "tf32", "bfloat16", "float64", "bfloat16-strided"):
                for sizes in ((0, 0, 0, 0), (6, 11, 12, 11), (12, 16, 20, 12)):
                    found = tuning.candidates(name, number_format, sizes)
                    assert found[0] == tuning.default(name, number_format, sizes)
                    assert len(found) > 3
                    for item in found:
                        assert Configuration.from_json(name, json.loads(json.dumps(item.as_json()))) == item


def test_the_fastest_is_used_and_kept(cache: Path) -> None:
    tuner = Tuner("sm_90")
    asked: list[Configuration] = []

    def measure(configuration: Configuration) -> float | None:
        asked.append(configuration)
        if configuration.blocks["BLOCK_P"] == 128:
            return None  # spills, say
        return 5.0 if configuration.warps == 8 and configuration.stages == 4 else 9.0

    best = tuner.tune("token_scores", "bfloat16", SIZES, measure)
    assert asked == tuning.candidates("token_scores", "bfloat16", (9, 11, 11))
    assert (best.warps, best.stages) == (8, 4)
    assert best.blocks["BLOCK_P"] != 128
    assert tuner.find("token_scores", "bfloat16", SIZES) == (best, True)
    assert tuner.info()[KEY]["from"] == "measured"
    # Another process finds it; what was there stays.
    assert Tuner("sm_90").find("token_scores", "bfloat16", SIZES) == (best, True)
    tuner.tune("step_scores", "bfloat16", (8, 8), lambda _: 1.0)
    assert Tuner("sm_90").find("token_scores", "bfloat16", SIZES) == (best, True)
    assert Tuner("sm_90").find("step_scores", "bfloat16", (8, 8))[1] is True
    assert [path.name for path in cache.iterdir()] == ["tuning-sm_90.json"]


def test_where_nothing_can_be_measured_the_rule_stays(cache: Path) -> None:
    tuner = Tuner("sm_90")
    rule = tuning.default("interference", "float32", (3, 3, 3))
    for result in (None, float("nan"), float("inf")):
        assert tuner.tune("interference", "float32", (8, 8, 8), lambda _, r=result: r) == rule
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected a table"),
        ("[]", "expected a table"),
        (b"\xff\xfe\x00", "expected a table"),
        (json.dumps({"format": 2, "configurations": {}}), "format 1"),
        (json.dumps({"format": 1, "configurations": []}), "expected a table"),
    ],
)
def test_a_broken_table_is_warned_about_and_replaced(cache: Path, content: str | bytes, words: str) -> None:
    path = cache / "tuning-sm_90.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tuner = Tuner("sm_90")
    with pytest.warns(UserWarning, match=re.escape(str(path)) + ".*" + words):
        assert tuner.find("token_scores", "bfloat16", SIZES)[1] is False
    with pytest.warns(UserWarning, match=words):
        tuner.tune("token_scores", "bfloat16", SIZES, lambda _: 1.0)
    assert Tuner("sm_90").find("token_scores", "bfloat16", SIZES)[1] is True


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"blocks": {"BLOCK_U": 16, "BLOCK_P": 16}, "warps": 4, "stages": 3},
            "expected blocks BLOCK_U, BLOCK_P, BLOCK_C",
        ),
        ({**OTHER.as_json(), "blocks": {**OTHER.blocks, "BLOCK_U": 24}}, "BLOCK_U to be a power of two.*24"),
        ({**OTHER.as_json(), "blocks": {**OTHER.blocks, "BLOCK_U": True}}, "BLOCK_U to be a power of two.*True"),
        ({**OTHER.as_json(), "blocks": {**OTHER.blocks, "BLOCK_U": 1 << 20}}, "BLOCK_U .* to 4096"),
        ({**OTHER.as_json(), "warps": 3}, "warps to be a power of two.*3"),
        ({**OTHER.as_json(), "warps": None}, "warps to be a power of two.*None"),
        ({**OTHER.as_json(), "stages": 0}, "stages from 1 to 8, got 0"),
        (7, "expected blocks"),
    ],
)
def test_a_bad_entry_is_warned_about_and_the_others_stay(cache: Path, entry: Any, words: str) -> None:
    good = "token_scores|float16|9,11,11"
    write(cache / "tuning-sm_90.json", {KEY: entry, good: OTHER.as_json(), "of_another_version|x|1": 3})
    tuner = Tuner("sm_90")
    with pytest.warns(UserWarning, match=words):
        assert tuner.find("token_scores", "bfloat16", SIZES)[1] is False
    assert tuner.find("token_scores", "float16", SIZES) == (OTHER, True)


def test_a_cache_that_cannot_be_written_is_only_warned_about(cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file where the folder should be")
    tuner = Tuner("sm_90")
    with pytest.warns(UserWarning, match="cannot keep what was measured"):
        best = tuner.tune("token_scores", "bfloat16", SIZES, lambda _: 1.0)
    assert tuner.find("token_scores", "bfloat16", SIZES) == (best, True)


def test_a_failed_write_leaves_the_old_table(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache / "tuning-sm_90.json"
    write(path, {KEY: OTHER.as_json()})
    before = path.read_text()

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        tuning.write_table(path, {"step_scores|float32|1,1": tuning.default("step_scores", "float32", (1, 1))})
    assert path.read_text() == before
    assert [item.name for item in cache.iterdir()] == [path.name]


def test_readers_never_see_a_part_of_a_table(cache: Path) -> None:
    path = cache / "tuning-sm_90.json"
    write(path, {KEY: OTHER.as_json()})
    more = {f"token_scores|float32|{i},1,1": OTHER for i in range(200)}
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(tuning.read_table(path)))  # 0 for a part, which is no JSON

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20):
            tuning.write_table(path, more)
    finally:
        stop.set()
        thread.join()
    assert set(seen) <= {1, 201}


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_tuning_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool) -> None:
    if value is None:
        monkeypatch.delenv("TAM_FAST_AUTOTUNE", raising=False)
    else:
        monkeypatch.setenv("TAM_FAST_AUTOTUNE", value)
    assert tuning.is_requested() is expected


def test_cache_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tuning.cache_folder().name == "cache"
    monkeypatch.delenv("TAM_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert tuning.cache_folder() == tmp_path / "xdg" / "tam_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuning.cache_folder() == Path.home() / ".cache" / "tam_fast"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tuning.cache_folder() == Path.home() / "Library" / "Caches" / "tam_fast"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert tuning.cache_folder() == tmp_path / "local" / "tam_fast"


def test_looking_up_needs_no_triton() -> None:
    # The package beside it is the backend, which does.
    code = (
        "import importlib.util, sys; sys.modules['triton'] = None;"
        f"spec = importlib.util.spec_from_file_location('tuning', {tuning.__file__!r});"
        "tuning = sys.modules['tuning'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(tuning);"
        "print(tuning.Tuner('sm_90').find('interference', 'float32', (1, 2, 3))[1])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "False", result.stderr
