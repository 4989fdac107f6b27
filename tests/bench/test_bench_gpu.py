"""The GPU's benchmark and visit, as far as they can be tried without a GPU: arithmetic, checks, refusals, files."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from places import ROOT

# Last, so that an installed tam_fast goes before the checkout's.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from bench import RESULTS, pages
from bench.gpu import TABLES, calls, file_name, machine, peers, sanitize, sanitizer, tables
from bench.gpu.__main__ import parse
from bench.gpu.clock import Cuda, Host
from bench.gpu.measure import Peer, Way, interleave
from bench.measure import WrongResultError
from bench.records import Record, read, single, write

VISIT = ROOT / "bench" / "gpu_visit.sh"


class Fake:
    """A device whose time only peers move; it notes what it was asked for."""

    def __init__(self) -> None:
        self.device, self.cache = torch.device("cpu"), 1
        self.now, self.log = 0.0, []  # type: ignore[var-annotated]

    def synchronize(self) -> None:
        pass

    def capture(self, given: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], list[Any]]:
        results = [call() for call in given]
        self.log.append(f"capture {len(given)}")

        def replay() -> None:
            results[:] = [call() for call in given]

        return replay, results

    def events(self, launch: Callable[[], Any], repeat: int = 1, *, ahead: float = 0.0, cold: bool = False) -> float:
        began = self.now
        for _ in range(repeat):
            launch()
        self.log.append(f"events{' ahead' * (ahead > 0)}{' cold' * cold}")
        return self.now - began

    def wall(self, launch: Callable[[], Any]) -> float:
        self.log.append("wall")
        began = self.now
        launch()
        return self.now - began

    def peer(self, name: str, seconds: float, count: int = 1, **more: Any) -> Peer:
        def call(index: int) -> str:
            self.now += seconds
            self.log.append(name)
            return f"{name}{index}"

        def check(got: str) -> str:
            if got != f"{name}0":
                raise WrongResultError(f"expected {name}0, got {got}")
            return "right"

        return Peer(name, [lambda index=index: call(index) for index in range(count)], check, **more)


def measured(*given: Peer, clock: Fake, **options: Any) -> Any:
    said: list[str] = []
    return interleave("case", given, clock, report=said.append, **options)


def test_times_are_of_one_call_and_ratios_of_one_unit_of_work() -> None:
    clock = Fake()
    case = measured(
        clock.peer("copy", 1e-4, count=4, work=8.0), clock.peer("ours", 2e-4, count=2, work=4.0), clock=clock
    )
    copy, ours = case.timings
    assert copy.seconds == pytest.approx((1e-4,) * 3)
    assert ours.seconds == pytest.approx((2e-4,) * 3)
    assert ours.ratio == pytest.approx((4.0,) * 3)  # twice the time for half the work
    assert copy.inner % 4 == 0
    assert ours.note.endswith("right")


@pytest.mark.long
def test_ways() -> None:
    for way, captured, asked in (
        (Way.THROUGHPUT, "capture 3", "events ahead"),
        (Way.REPLAY, "capture 1", "events ahead"),
        (Way.COLD, "capture 1", "events ahead cold"),
        (Way.EAGER, None, "events"),
        (Way.QUEUED, None, "events ahead"),
        (Way.WALL, None, "wall"),
    ):
        clock = Fake()
        (timing,) = measured(clock.peer("a", 1e-3, count=3, way=way), clock=clock).timings
        assert timing.seconds == pytest.approx((1e-3,) * 3), way
        assert [entry for entry in clock.log if entry.startswith("capture")] == ([captured] if captured else [])
        assert {entry for entry in clock.log if entry.startswith("events")} <= {asked}
        assert asked in clock.log
        assert way.value in timing.note


def test_lone_replays_are_not_repeated() -> None:
    clock = Fake()
    peer = clock.peer("a", 1e-6, way=Way.REPLAY)
    (timing,) = measured(peer, clock=clock, min_sample=1e-3).timings
    assert timing.inner == 1
    (timing,) = measured(clock.peer("a", 1e-5), clock=clock, min_sample=1e-3).timings
    assert timing.inner == 100


def test_peers_take_turns() -> None:
    clock = Fake()
    names = [clock.peer(name, 1e-3, way=Way.EAGER) for name in "abc"]
    measured(*names, clock=clock, min_samples=3, max_rounds=3)
    assert "".join(entry for entry in clock.log if len(entry) == 1)[-9:] == "abcbcacab"


def test_slow_peers_sit_rounds_out() -> None:
    clock = Fake()
    case = measured(
        clock.peer("fast", 1e-3, way=Way.WALL),
        clock.peer("slow", 1.0, way=Way.WALL),
        clock=clock,
        budget=0.1,
        min_samples=3,
    )
    assert [timing.samples for timing in case.timings] == [100, 3]


def test_a_peer_that_fails_is_named_and_left_out() -> None:
    clock = Fake()

    def fail() -> None:
        raise RuntimeError("no kernel for this\nand more")

    wrong = Peer("wrong", [lambda: "x"], clock.peer("y", 1.0).check)
    case = measured(
        Peer("broken", [fail], lambda got: None), wrong, clock.peer("good", 1e-3), clock=clock, min_samples=2
    )
    assert [timing.name for timing in case.timings] == ["good"]
    assert case.failures == {
        "broken": "RuntimeError: no kernel for this",
        "wrong": "WrongResultError: expected y0, got x",
    }
    assert case.timings[0].ratio == (1.0, 1.0, 1.0)


def test_what_a_graph_gives_is_checked_too() -> None:
    clock, calls_made = Fake(), []

    def call() -> str:
        calls_made.append(1)
        return "a0" if len(calls_made) == 1 else "stale"

    case = measured(Peer("a", [call], clock.peer("a", 1.0).check), clock=clock)
    assert case.failures == {"a": "WrongResultError: expected a0, got stale"}


def test_peers_need_names_of_their_own() -> None:
    clock = Fake()
    with pytest.raises(ValueError, match="different names"):
        measured(clock.peer("a", 1.0), clock.peer("a", 1.0), clock=clock)


# Checks and peers.


def test_checks() -> None:
    expected = torch.tensor([[0.0, 2.0]])
    check = tables.close(expected, 1e-3)
    assert check((expected + 1e-3,)) == "off by 5.0e-04 of the maximum"
    for wrong in (expected + 3e-3, expected * torch.nan, expected[0]):
        with pytest.raises(WrongResultError, match="maps: expected"):
            check(wrong)
    levels = torch.zeros(200, 200, dtype=torch.uint8)
    got = levels.clone()
    got[0, :4] = 1
    assert tables.close_levels(levels)(got) == "1 level off on 1.0e-04 of pixels"
    got[0, 4] = 1
    with pytest.raises(WrongResultError, match=r"got 1 on 0\.000125"):
        tables.close_levels(levels)(got)
    got = levels.clone()
    got[3, 3] = 2
    with pytest.raises(WrongResultError, match="got 2 on"):
        tables.close_levels(levels)(got)
    with pytest.raises(WrongResultError, match="medians: expected exactly the same values"):
        tables.medians(torch.ones(1, 4, 4))(torch.zeros(1, 4, 4))


def test_peers_compute_the_filter() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((3, 9, 10), dtype=np.float32))
    expected = oracle.rank_gaussian_filter(x.numpy())
    for way in (peers.unfold_and_sort, peers.stack_and_sort, peers.network):
        assert np.abs(way(x).numpy() - expected).max() <= 5e-6
    assert np.abs(peers.unfold_and_sort(x, 5).numpy() - oracle.rank_gaussian_filter(x.numpy(), 5)).max() <= 5e-6
    windows = oracle.sliding_window_view(np.pad(x.numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect"), (3, 3), (1, 2))
    assert np.array_equal(peers.median(x).numpy(), np.median(windows.reshape(3, 9, 10, 9), axis=-1))


@pytest.mark.long
@pytest.mark.parametrize("table", list(TABLES))
def test_a_rehearsal(device: torch.device, table: str, request: pytest.FixtureRequest) -> None:
    """Every case and peer of a table once, at sizes that mean nothing."""
    backend = request.node.callspec.params["device"].partition("-")[0]
    if backend == "triton" and device.type != "cuda" and table in ("filter", "answer"):
        pytest.skip("takes minutes under the interpreter")
    clock = Cuda() if device.type == "cuda" else Host()
    clock.device = device
    run = tables.Run(clock, [backend], rehearsal=True)
    tables.MEASURE[table](run)
    assert not run.failures
    assert not run.left_out
    assert {row.name for row in run.records} > {"torch, unfold + sort" if table == "filter" else "torch, graph"}
    assert any(row.name.startswith("tam_fast") for row in run.records)


def test_a_deadline_leaves_cases_out_and_says_so() -> None:
    run = tables.Run(Host(), [], rehearsal=True, deadline=0.0)
    tables.causal_table(run)
    assert not run.records
    assert run.failures == ["4 prompt and 6 answer tokens, 64 positions: left out, there was no time left"]


def test_the_small_calls_are_one_of_each_operator(device: torch.device) -> None:
    assert tuple(call.name.partition(" ")[0] for call in calls.small(device)) == calls.SMALL
    assert sanitize.run("least_squares", small=True, device=device) == 1


def test_the_sanitized_program_notices_what_does_not_repeat(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([torch.ones(3), torch.ones(3), torch.ones(3), -torch.zeros(3), torch.zeros(3)])
    call = calls.Call("twice", lambda: [next(values)], lambda seed: None)
    monkeypatch.setattr(calls, "small", lambda device: [call])
    assert sanitize.run(small=True, device=device) == 1
    assert sanitize.run("other", small=True, device=device) == 0
    with pytest.raises(RuntimeError, match="twice: expected the same bits twice"):
        sanitize.run(small=True, device=device)


def test_kernels_that_never_ran_are_named() -> None:
    names = ["void tam::a<float, 3>(int)", "void tam::b(int)"]
    assert sanitize.never(names, {"void tam::a<float,3>(int)", "other"}) == ["void tam::b(int)"]


# compute-sanitizer.

CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
FOUND = "========= Invalid __global__ write\n========= ERROR SUMMARY: 2 errors\n"
RACE = "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"


def test_a_summary_is_read() -> None:
    assert sanitizer.found(CLEAN, 0) == 0
    assert sanitizer.found(FOUND, 86) == 2
    assert sanitizer.found(RACE, 86) == 1
    assert sanitizer.found("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0) == 0
    for output, code in (("no summary", 0), ("", 86), (CLEAN, 1), (CLEAN, 86), (FOUND, 0)):
        with pytest.raises(sanitizer.UnclearError):
            sanitizer.found(output, code)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def sanitized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """Problems that a made-up compute-sanitizer leads to."""
    program(tmp_path / "compute-sanitizer", text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return sanitizer.check("memcheck", tmp_path / "planted", [["program"]], 5.0, tmp_path)


def test_a_tool_must_find_its_planted_fault_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, fault = f"echo '{CLEAN.splitlines()[-1]}'", f"echo '{FOUND.splitlines()[-1]}'; exit 86"
    good = f"case ${{@: -1}} in memcheck) {fault};; *) {clean};; esac"
    assert sanitized(tmp_path, monkeypatch, good) == []
    assert "racecheck" not in (tmp_path / "memcheck-0.log").read_text()
    misses = sanitized(tmp_path, monkeypatch, clean)
    assert [line.partition(":")[2] for line in misses] == [
        f" expected its planted fault to be found, got 0: {tmp_path}/planted memcheck"
    ]
    always = sanitized(tmp_path, monkeypatch, fault)
    assert always == [f"memcheck: expected no errors, got 2: {tmp_path}/planted none"]
    of_ours = f"case ${{@: -1}} in none) {clean};; *) {fault};; esac"
    assert sanitized(tmp_path, monkeypatch, of_ours) == ["memcheck: expected no errors, got 2: program"]
    refused = sanitized(tmp_path, monkeypatch, "echo 'Device not supported'; exit 1")
    assert refused == [f"memcheck: expected a summary of errors, got none (exit code 1): {tmp_path}/planted none"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_planted_faults_compile_without_a_warning(tmp_path: Path) -> None:
    output = tmp_path / "planted"
    flags = ["-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    subprocess.run(["nvcc", *flags, "-o", str(output), str(sanitizer.PLANTED)], check=True, timeout=300)
    done = subprocess.run([str(output), "other"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "mode: expected none, memcheck, racecheck, initcheck or synccheck, got 'other'" in done.stderr


# The commands.


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_command_names_its_tables_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["filter", "--seconds", "5"]).tables == ["filter"]
    for wrong in (["filters"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            parse(wrong)
    assert "expected one of filter, answer, stream, causal, got 'filters'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test says is missing")
def test_the_command_without_a_gpu_is_an_error(tmp_path: Path) -> None:
    done = command("bench.gpu", "causal", "--output", str(tmp_path))
    assert done.returncode == 1
    assert "expected a CUDA device, torch sees none here" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_commit_comes_from_the_environment_if_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.COMMIT, "abc1234")
    assert machine.commit() == "abc1234"


def test_the_drivers_tool_is_asked_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that does not know a clock that is asked for answers nothing to the whole question.
    program(
        tmp_path / "nvidia-smi",
        f'echo "$*" >>{tmp_path}/asked\n'
        'case $* in *applications*) exit 6;; *=name*) echo "Some GPU";; *) echo 7;; esac\n',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = machine._asked(0)
    assert (found["device"], found["SM clock"], found["application clock"]) == ("Some GPU", "7", "unknown")
    for line in (tmp_path / "asked").read_text().splitlines():
        assert line.startswith("--id=0 --query-gpu="), line


def described() -> dict[str, str]:
    return {
        "device": "Some GPU",
        "driver": "580.1",
        "SM clock": "345 MHz",
        "highest SM clock": "1980 MHz",
        "cuda": "13.0",
        "torch": "2.11.0",
        "triton": "3.6.0",
        "tam_fast": "0.1.0",
        "commit": "abc1234",
        "date": "2026-01-02",
    }


def test_the_pages_show_what_was_measured(tmp_path: Path) -> None:
    def row(case: str, name: str, p50: float, ratio: float) -> Record:
        return Record(case, name, "us", 1, p50 * 0.9, p50, p50 * 1.1, ratio, ratio, ratio, 9)

    rows = [
        row("device copy", "clone", 700.0, 1.0),
        single("device copy", "clone", "GB/s", 1, 3012.0),
        row("filter, 2x3x4, float32", "copy", 14.0, 1.0),
        row("filter, 2x3x4, float32", "tam_fast, cuda", 20.0, 1.43),
    ]
    write(tmp_path / file_name("filter"), rows, described())
    write(
        tmp_path / file_name("stream"),
        [row("one token", "graph", 9.5, 1.0), row("one token", "eager", 30.0, 3.2)],
        described(),
    )
    results = pages.load_gpu(tmp_path)
    assert set(results) == {"filter", "stream"}
    text = pages.on_a_gpu(results)
    assert "| tam_fast, cuda | 20.0 us (70 %) |" in text
    assert "device copy: 3,012 GB/s." in text
    assert "| one token | graph | 9.50 (8.55 to 10.4) us | 1.00x |" in text
    assert "|  | eager | 30.0 (27.0 to 33.0) us | 3.20x |" in text
    assert "Some GPU, driver 580.1, cuda 13.0, torch 2.11.0, triton 3.6.0, clocks as found (SM 345 MHz at rest" in text
    assert "commit abc1234, 2026-01-02; `python -m bench.gpu stream`." in text
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\nb\n")
    assert pages.update(tmp_path, {}, results) == ["gpu"]
    assert file.read_text() == f"a\n<!-- bench:gpu -->\n{text}\n<!-- /bench:gpu -->\nb\n"


def test_the_pages_claim_what_was_measured_and_no_more() -> None:
    texts = pages.texts(ROOT)
    made = pages.on_a_gpu(pages.load_gpu(RESULTS))
    assert pages.replace(texts, "gpu", made) == texts
    if not list(RESULTS.glob("gpu_*.csv")):
        assert made.startswith("Not yet measured.")


@pytest.mark.long
def test_a_rehearsal_of_the_command(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter serves machines without a GPU")
    pytest.importorskip("triton")
    done = command(
        "bench.gpu", "causal", "--rehearse", "--backends", "triton", "--output", str(tmp_path), TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records, about = read(tmp_path / file_name("causal"))
    assert {row.name for row in records} == {
        f"{way}, {how}" for way in ("tam_fast, triton", "torch") for how in ("graph", "eager")
    }
    assert about["device"].startswith("rehearsal on ")
    assert "tam_fast, triton, graph" in done.stdout


# The visit.


def visit(*arguments: str, path: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(VISIT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **({} if path is None else {"PATH": path}), **environment},
    )


def test_a_visit_without_a_gpu_says_what_it_would_do(tmp_path: Path) -> None:
    done = visit("--plan", OUT=str(tmp_path / "out"), TAM_FAST_VISIT_WORK=str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    for said in ("-Ccmake.define.TAM_FAST_CUDA=ON", "test_gpu.py", "bench.gpu.sanitizer racecheck", "bench.gpu stream"):
        assert said in done.stdout
    assert not list(tmp_path.iterdir()), "nothing is written"
    if shutil.which("nvidia-smi") is None:
        assert "No GPU here" in visit("test").stdout
        assert "sanitizer" not in visit("test").stdout


def test_a_visit_refuses_what_it_does_not_know() -> None:
    done = visit("--plan", "tests")
    assert done.returncode == 2
    assert "expected --plan, build, test, sanitize or bench, got 'tests'" in done.stderr


def on_a_made_up_gpu(tmp_path: Path, python: str, *arguments: str, **environment: str) -> Any:
    """Visit a machine whose GPU and Python are scripts."""
    program(tmp_path / "nvidia-smi", "echo 9.0\n")
    interpreter = program(tmp_path / "python", python)
    return visit(
        *arguments,
        path=f"{tmp_path}:{os.environ['PATH']}",
        PYTHON=str(interpreter),
        OUT=str(tmp_path / "out"),
        TAM_FAST_VISIT_WORK=str(tmp_path / "work"),
        **environment,
    )


def test_a_visit_goes_on_after_a_failure_and_ends_with_one(tmp_path: Path) -> None:
    python = 'echo "$PYTHONPATH $*"\ncase $* in *"sanitizer synccheck"*) echo hazard; exit 3;; esac\n'
    done = on_a_made_up_gpu(tmp_path, python, "sanitize", "bench")
    assert done.returncode == 1
    assert "sm_90" in done.stdout
    summary = done.stdout.partition("=== summary")[2]
    assert summary.count(" passed") == 11
    assert "synccheck" in next(line for line in summary.splitlines() if "FAILED (exit code 3)" in line)
    assert "1 of 12 steps failed" in summary
    assert "hazard" in (tmp_path / "out" / "sanitize.log").read_text()
    assert f"{tmp_path}/work/site:{ROOT}" in (tmp_path / "out" / "bench.log").read_text()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["bench.log", "build.log", "sanitize.log"]


def test_a_visit_builds_without_cuda_where_it_cannot_be_built_with(tmp_path: Path) -> None:
    python = "case $* in *TAM_FAST_CUDA=ON*) exit 1;; esac\n"
    done = on_a_made_up_gpu(tmp_path, python, "build")
    assert done.returncode == 1
    assert "TAM_FAST_CUDA=OFF" in (tmp_path / "out" / "build.log").read_text()
    assert on_a_made_up_gpu(tmp_path, "", "build").returncode == 0


def test_a_visit_keeps_to_its_time(tmp_path: Path) -> None:
    done = on_a_made_up_gpu(tmp_path, "", "bench", TAM_FAST_VISIT_SECONDS="3")
    assert done.returncode == 1
    assert done.stdout.count("FAILED (no time left)") == done.stdout.count("\nno time left\n") == 7
