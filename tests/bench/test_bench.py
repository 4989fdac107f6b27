"""The benchmarks' harness: arithmetic, refusals, files. Nothing here depends on how long anything takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from places import ROOT

import tam_fast

# Last, so that an installed tam_fast goes before the checkout's.
sys.path.append(str(ROOT))

from bench import RESULTS, pages, plot
from bench.__main__ import parse
from bench.measure import (
    Peer,
    WrongResultError,
    difference,
    expect_close,
    expect_equal,
    interleave,
    quantiles,
)
from bench.records import Record, find, read, record, single, write
from bench.tables import TABLES

MACHINE = {
    "cpu": "Some CPU",
    "isa": "avx2",
    "tam_fast": "1.2.3",
    "torch": "2.9.0",
    "numpy": "2.0",
    "opencv": "5.0",
    "python": "3.11.7",
    "cores": "2",
    "commit": "abc1234+",
    "date": "2026-01-02",
    "pinned": "yes",
}


class Clock:
    """A clock that only peers move; it notes who ran while it was being read."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def peer(self, name: str, seconds: float | Callable[[], float], **more: Any) -> Peer:
        def run() -> str:
            self.now += seconds() if callable(seconds) else seconds
            self.calls.append(name)
            return name

        def check(got: str) -> None:
            if got != name:
                raise WrongResultError(f"expected {name}, got {got}")

        return Peer(name, run, check, **more)


def test_quantiles() -> None:
    assert quantiles([5.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx((1.8, 3.0, 4.2))
    assert quantiles([7.0]) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="expected at least one, got none"):
        quantiles([])


def test_times_and_ratios() -> None:
    clock = Clock()
    fast, slow = interleave("case", [clock.peer("a", 0.002, work=4.0), clock.peer("b", 0.05)], clock=clock)
    assert fast.seconds == pytest.approx((0.0005,) * 3)
    assert slow.seconds == pytest.approx((0.05,) * 3)
    assert fast.ratio == (1.0, 1.0, 1.0)
    assert slow.ratio == pytest.approx((100.0,) * 3)


def test_ratios_are_taken_within_a_round() -> None:
    # The machine gets slower with every round: ratios of medians over all rounds would not see 3.
    clock, load = Clock(), [1.0]

    def heavier(number: int) -> None:
        load[0] = 1.1**number

    peers = [clock.peer("a", lambda: 0.2 * load[0]), clock.peer("b", lambda: 0.6 * load[0])]
    a, b = interleave("case", peers, budget=2.0, min_samples=3, on_round=heavier, clock=clock)
    assert (a.samples, b.samples) == (10, 3)
    assert b.ratio == pytest.approx((3.0,) * 3)
    assert b.seconds.p50 / a.seconds.p50 > 3.1


def test_quantiles_of_the_ratio() -> None:
    clock = Clock()
    turn = {"a": 0, "b": 0}

    def varying(name: str, values: list[float]) -> Callable[[], float]:
        def seconds() -> float:
            turn[name] += 1
            # The first call is the check's.
            return values[max(turn[name] - 2, 0) % len(values)]

        return seconds

    peers = [clock.peer("a", varying("a", [0.5])), clock.peer("b", varying("b", [0.5, 1.0, 1.5, 2.0, 2.5]))]
    _, b = interleave("case", peers, budget=0.0, min_samples=5, clock=clock)
    assert b.ratio == pytest.approx((1.8, 3.0, 4.2))


def test_peers_take_turns_and_rotate() -> None:
    clock = Clock()
    peers = [clock.peer(name, 0.2) for name in "abc"]
    interleave("case", peers, budget=0.0, min_samples=6, clock=clock)
    rounds = ["".join(clock.calls[i : i + 3]) for i in range(3, len(clock.calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca", "cab"]


def test_slow_peers_get_fewer_samples_and_short_calls_are_repeated() -> None:
    clock = Clock()
    peers = [clock.peer("short", 1e-5), clock.peer("middle", 0.02), clock.peer("slow", 5.0)]
    short, middle, slow = interleave("case", peers, budget=1.0, min_samples=3, max_rounds=200, clock=clock)
    assert short.inner * 1e-5 >= 1e-3
    assert (short.samples, middle.samples, slow.samples) == (200, 50, 3)
    assert (middle.inner, slow.inner) == (1, 1)


def test_what_is_not_timed() -> None:
    clock = Clock()

    def prepare() -> None:
        clock.now += 100.0

    (timing,) = interleave("case", [clock.peer("a", 0.01, before=prepare)], clock=clock)
    assert timing.seconds == pytest.approx((0.01,) * 3)


def test_a_wrong_result_aborts_before_anything_is_timed() -> None:
    clock = Clock()
    good = clock.peer("good", 0.001)
    wrong = Peer("wrong", lambda: np.array([1.0, 2.0]), lambda got: expect_close(got, [1.0, 2.5], 1e-3, "maps"))
    with pytest.raises(WrongResultError, match=r"my case: wrong: maps: expected at most 0.001 .* got 0.5"):
        interleave("my case", [good, wrong], clock=clock)
    assert clock.calls == ["good"]


@pytest.mark.parametrize("got", [[1.0, np.nan], [1.0, 2.0, 3.0], [1.0, 2.1], [1.0, np.inf]])
def test_checks_refuse(got: list[float]) -> None:
    with pytest.raises(WrongResultError):
        expect_close(got, [1.0, 2.0], 1e-3)
    with pytest.raises(WrongResultError):
        expect_equal(got, [1.0, 2.0])


def test_checks_accept() -> None:
    expect_close([1.0, 2.0004, np.nan], [1.0, 2.0, np.nan], 1e-3)
    expect_equal([1.0, 2.0], [1.0, 2.0])


def test_peers_need_names_of_their_own() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="different names"):
        interleave("case", [clock.peer("a", 0.1), clock.peer("a", 0.1)], clock=clock)


def test_difference() -> None:
    clock = Clock()
    whole, part = interleave("case", [clock.peer("whole", 0.5), clock.peer("part", 0.2)], clock=clock)
    rest = difference("rest", whole, part)
    assert rest.seconds == pytest.approx((0.3,) * 3)
    assert rest.ratio == pytest.approx((0.6,) * 3)


def test_records_survive_a_file(tmp_path: Path) -> None:
    clock = Clock()
    timing = interleave("case", [clock.peer("a, b", 0.25, note='says "x"')], clock=clock)[0]
    rows = [record("one, two", timing, "ms", 2), single("memory", "peak", "MiB", 1, 12.5, "fresh process")]
    write(tmp_path / "table.csv", rows, MACHINE)
    assert rows[0].p50 == pytest.approx(250.0)
    assert read(tmp_path / "table.csv") == (rows, MACHINE)
    assert find(rows, "memory", "peak", 2) is None
    assert find(rows, "memory", "peak", 1) is rows[1]


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("# cpu: x\ncase,name,value\na,b,1\n")
    with pytest.raises(ValueError, match=r"table\.csv: expected the columns case, name, unit"):
        read(tmp_path / "table.csv")


TEXT = "before <!-- bench:x -->\nold\n<!-- /bench:x --> between <!-- bench:y -->kept<!-- /bench:y --> after\n"


def test_rewriting_touches_the_marked_part_only() -> None:
    before = {"README.md": "mine\n", "docs/a.md": TEXT}
    got = pages.replace(before, "x", "\n| new |\n")
    assert got == {"README.md": "mine\n", "docs/a.md": TEXT.replace("old", "| new |")}
    assert pages.replace(got, "x", "| new |") == got


def test_links_to_files_are_those_of_the_page() -> None:
    new = "![plot](bench/results/linear.png) [elsewhere](https://example.org/bench/)"
    assert f"\n{new}\n" in pages.replace({"README.md": TEXT}, "x", new)["README.md"]
    got = pages.replace({"docs/a.md": TEXT}, "x", new)["docs/a.md"]
    assert "\n![plot](../bench/results/linear.png) [elsewhere](https://example.org/bench/)\n" in got


@pytest.mark.parametrize(
    ("text", "other", "message"),
    [
        (TEXT.replace("<!-- bench:x -->", ""), "", "expected the marker <!-- bench:x --> once, got it 0 times in a, b"),
        (
            TEXT.replace("<!-- /bench:x -->", ""),
            "",
            "expected the marker <!-- /bench:x --> once, got it 0 times in a, b",
        ),
        (TEXT + "<!-- bench:x -->", "", "once, got it 2 times: a, a"),
        (TEXT, TEXT, "expected the marker <!-- bench:x --> once, got it 2 times: a, b"),
        (
            "<!-- bench:x -->",
            "<!-- /bench:x -->",
            "expected <!-- bench:x --> and <!-- /bench:x --> on one page, got a and b",
        ),
        ("<!-- /bench:x --> <!-- bench:x -->", "", "the other way round"),
    ],
)
def test_a_missing_marker_is_an_error_and_so_is_one_too_many(text: str, other: str, message: str) -> None:
    with pytest.raises(pages.MarkerError, match=message):
        pages.replace({"a": text, "b": other}, "x", "new")


def results() -> dict[str, tuple[list[Record], dict[str, str]]]:
    def row(case: str, name: str, p50: float, ratio: float, unit: str = "ms", threads: int = 1) -> Record:
        return Record(case, name, unit, threads, p50 * 0.9, p50, p50 * 1.1, ratio * 0.9, ratio, ratio * 1.1, 9)

    return {
        "filter": ([row("f", "tam_fast", 1.25, 1, "ns a pixel"), row("f", "plain Python loop", 22344, 17875)], MACHINE),
        "causal": ([row("c", "tam_fast", 0.4, 1), row("c", "torch, vectorised", 0.44, 1.1)], MACHINE),
        "answer": (
            [
                row("w", "tam_fast.activation_maps", 12, 1),
                row("w", "tam_fast.activation_maps", 7, 1, threads=2),
                single("w", "states + maps", "MiB", 2, 9.5),
                single("w", "peak beyond the inputs", "MiB", 2, 5.0),
                single("w", "(states + peak) / (states + maps)", "", 2, 1.45),
            ],
            MACHINE,
        ),
    }


def test_the_pages_are_made_of_the_results(tmp_path: Path) -> None:
    readme, speed = tmp_path / "README.md", tmp_path / "docs" / "speed.md"
    names = ("filter", "causal", "answer", "machine")
    speed.parent.mkdir()
    readme.write_text("head\n<!-- bench:summary -->\n<!-- /bench:summary -->\nmine\n")
    speed.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\nmine\n" for name in names))
    (tmp_path / "docs" / "other.md").write_text("mine\n")
    assert set(pages.update(tmp_path, results())) == {"summary", *names}
    got = readme.read_text() + speed.read_text()
    assert got.startswith("head\n")
    assert got.count("\nmine\n") == 1 + len(names)
    assert "**tam_fast**" in readme.read_text()
    assert (tmp_path / "docs" / "other.md").read_text() == "mine\n"
    assert "| plain Python loop | 22,344 (17,875x) |" in got
    assert "| **tam_fast** | 12.0 (1.00x) | 7.00 (1.00x) | 0.40 (1.00x) | 1.25 (1.00x) |" in got
    assert "Some CPU (avx2), tam_fast 1.2.3, torch 2.9.0" in got
    assert "commit abc1234+, 2026-01-02" in got


def test_results_of_different_runs_say_so(tmp_path: Path) -> None:
    found = results()
    found["filter"] = (found["filter"][0], {**MACHINE, "commit": "fff0000", "pinned": "no"})
    made = pages.contents(found)["machine"]
    assert "filter: Some CPU" in made
    assert "commit fff0000, 2026-01-02, one-thread tables not pinned" in made
    assert "causal, answer: " in made


def test_nothing_is_written_where_a_marker_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("<!-- bench:filter -->\n<!-- /bench:filter -->\n")
    with pytest.raises(pages.MarkerError):
        pages.update(tmp_path, results())
    assert file.read_text() == "<!-- bench:filter -->\n<!-- /bench:filter -->\n"


def test_the_pages_have_a_place_for_every_table() -> None:
    texts = pages.texts(ROOT)
    assert sorted(pages.markers(texts)) == sorted([*TABLES, "summary", "machine", "gpu"])
    for name in pages.markers(texts):
        pages.replace(texts, name, "")


def test_the_pages_show_the_results_that_are_kept() -> None:
    texts = pages.texts(ROOT)
    for name, content in pages.contents(pages.load(RESULTS)).items():
        assert pages.replace(texts, name, content) == texts, f"{name}: python -m bench --pages-only"


def test_slope() -> None:
    sizes = [32.0, 64.0, 128.0, 256.0, 512.0]
    assert plot.slope(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_high_water_begins_again() -> None:
    # In a process of its own, where nothing else is freed meanwhile.
    program = """
import numpy as np
from bench import machine
first = np.ones(256 * 2**20, dtype=np.uint8)
del first
peak = machine.high_water()
machine.reset_high_water()
before = machine.high_water()
second = np.ones(64 * 2**20, dtype=np.uint8)
print(peak - before, machine.high_water() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    dropped, seen = map(float, done.stdout.split())
    if dropped == 0:
        pytest.skip("this system does not let the peak of resident memory begin again")
    assert dropped > 250
    assert 60 < seen < 70


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_lists_its_tables() -> None:
    done = command("bench", "--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(TABLES)


@pytest.mark.parametrize("names", [("--no-pages", "--pages-only"), ("--no-readme", "--readme-only")])
def test_options_of_the_pages_and_what_they_were_called(names: tuple[str, str]) -> None:
    for given in names:
        options = parse([given])
        assert (options.no_pages, options.pages_only) == (given == names[0], given == names[1])


def test_the_command_refuses_an_unknown_table() -> None:
    done = command("bench", "filters")
    assert done.returncode == 2
    assert "expected one of filter, isa" in done.stderr
    assert "got 'filters'" in done.stderr


# What needs OpenCV and scipy, which the tests' own extra does not bring.


def test_a_kernel_that_goes_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    from bench import cases

    right = tam_fast.rank_gaussian_filter

    def wrong(maps: torch.Tensor, kernel_size: int = 3, **more: Any) -> torch.Tensor:
        return right(maps, kernel_size, **more) * (1 + 5 * tolerances.FILTER_DENSE)

    peers = cases.filter_peers((3, 12, 10), 3, slow=False)
    assert interleave("filter", peers, budget=0.0, min_samples=1)[0].name == "tam_fast"
    monkeypatch.setattr(tam_fast, "rank_gaussian_filter", wrong)
    with pytest.raises(WrongResultError, match="filter: tam_fast: filtered maps: expected at most 4e-07"):
        interleave("filter", peers, budget=0.0, min_samples=1)


# What methods cost: the table's arithmetic; the models are measured by the command alone.


def test_peak_of_what_torch_allocates() -> None:
    from bench.tables.methods import peak_of

    def run() -> int:
        first = torch.ones(2**20)
        second = first + 1
        del first
        return second.numel() + torch.ones(2**19).numel()

    made, peak, seconds = peak_of(run)
    assert made == 3 * 2**19
    assert peak == pytest.approx(8, abs=0.1)
    assert seconds > 0


def test_methods_of_random_weights_are_looked_at() -> None:
    from bench.tables.methods import random_weights

    case = random_weights("small", quick=True)
    maps = case.method("attention", {})
    case.check(maps)
    for wrong in (maps[:-1], maps * float("nan"), maps * 0):
        with pytest.raises(WrongResultError, match="maps: expected"):
            case.check(wrong)
    case.check(case.backward())


def test_the_page_shows_what_methods_cost() -> None:
    rows = [
        Record("embedded model, 9 visual tokens", "cam", "ms a token", 2, 1, 2, 3, 0.9, 1.04, 1.1, 5),
        Record("embedded model, 9 visual tokens", "cam", "MiB", 2, None, 12.5, None, None, 1.5, None),
        Record("random weights, 345 visual tokens", "cam", "left out", 2, None, 0.0, None, note="it takes long"),
        Record("random weights, 345 visual tokens", "lime", "ms a token", 2, 1, 2, 3, 8, 9, 10, 1, note="samples=8"),
    ]
    made = pages.contents({"methods": (rows, MACHINE)})["methods"]
    assert "| cam | 2.00 (1.04x) | 12.5 (1.50x) | – | – |" in made
    assert "| lime | – | – | 2.00 (9.00x) samples=8 | – |" in made
    assert (
        "Medians of 1 to 5 turns, 2 threads, the processor's time. Left out: cam (345 visual tokens): it takes long."
        in made
    )


def test_tables_are_put_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- some -->\nold\n<!-- /some -->\nb\n", encoding="utf-8")
    pages.put(page, "some", "new\nlines")
    assert page.read_text(encoding="utf-8") == "a\n<!-- some -->\nnew\nlines\n<!-- /some -->\nb\n"
    for text in ("", "<!-- /some --><!-- some -->", "<!-- some --><!-- some --><!-- /some -->"):
        page.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"page\.md: expected <!-- some --> and <!-- /some --> once each"):
            pages.put(page, "some", "new")
        assert page.read_text(encoding="utf-8") == text
