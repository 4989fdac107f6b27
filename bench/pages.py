"""The tables of the README and of ``docs/``: made from the CSVs of ``bench/results``, and put between their markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import gpu, machine
from bench.records import Record, find, read
from bench.tables import LINEAR_CHANNELS, TABLES

Results = Mapping[str, tuple[Sequence[Record], Mapping[str, str]]]
Texts = Mapping[str, str]  # pages by their path from the root


class MarkerError(ValueError):
    """The pages have no place for a table, or more than one."""


def texts(root: Path) -> dict[str, str]:
    """Read the pages that may hold tables: ``README.md`` and ``docs/*.md``."""
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}


def _place(pages: Texts, marker: str) -> str:
    """Find the page that holds a marker."""
    found = [page for page, text in pages.items() for _ in range(text.count(marker))]
    if len(found) != 1:
        where = f": {', '.join(found)}" if found else f" in {', '.join(pages)}"
        raise MarkerError(f"expected the marker {marker} once, got it {len(found)} times{where}")
    return found[0]


def replace(pages: Texts, name: str, content: str) -> dict[str, str]:
    """Put content between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``, on whichever page they are.

    Links to files in ``bench/`` are written from there. Everything else stays as it is.

    Raises
    ------
    MarkerError
        If the two markers are not there once each over all pages, on one of them and in this order.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    page, other = _place(pages, begin), _place(pages, end)
    text = pages[page]
    first, last = text.index(begin) + len(begin), text.find(end)
    if page != other:
        raise MarkerError(f"expected {begin} and {end} on one page, got {page} and {other}")
    if first > last:
        raise MarkerError(f"{page}: expected {begin} before {end}, got them the other way round")
    content = content.strip().replace("](bench/", f"]({'../' * page.count('/')}bench/")
    return {**pages, page: f"{text[:first]}\n{content}\n{text[last:]}"}


def number(value: float) -> str:
    """Three significant digits or so: 0.83, 12.4, 107, 22,344."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3f}"


def factor(value: float | None) -> str:
    """A ratio: 0.74x, 12.4x, 8,780x."""
    return "" if value is None else f"{number(value)}x"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are words and the others numbers."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * words + "---:|" * (len(header) - words)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _cell(row: Record | None) -> str:
    if row is None:
        return "–"
    return number(row.p50) if row.ratio_p50 is None else f"{number(row.p50)} ({factor(row.ratio_p50)})"


def _pivot(records: Sequence[Record], corner: str, cases: Sequence[str] | None = None) -> str:
    """Ways down, cases across: p50 and ratio."""
    cases = _unique([row.case for row in records]) if cases is None else cases
    names = _unique([row.name for row in records if row.case in cases])
    return _grid([corner, *cases], [[name, *(_cell(find(records, case, name)) for case in cases)] for name in names])


def _spread(row: Record) -> str:
    if row.p20 is None or row.p80 is None:
        return number(row.p50)
    return f"{number(row.p50)} ({number(row.p20)} to {number(row.p80)})"


def _ratio_spread(row: Record) -> str:
    if row.ratio_p50 is None or row.ratio_p20 is None or row.ratio_p80 is None:
        return ""
    return f"{row.ratio_p50:.3f} ({row.ratio_p20:.3f} to {row.ratio_p80:.3f})"


def _filter(records: Sequence[Record]) -> str:
    return _pivot(records, "ns a pixel (times tam_fast's)")


def _isa(records: Sequence[Record]) -> str:
    cases = _unique([row.case for row in records])
    kinds = [case for case in cases if case.endswith("dtypes")]
    sets = [case for case in cases if case not in kinds]
    small, large = ([case for case in sets if case.endswith(f"{k}x{k}")] for k in (3, 5))
    parts = [_pivot(records, "ns a pixel (times cv2's)", group) for group in (small, large) if group]
    return "\n\n".join([*parts, _pivot(records, "ns a pixel (times float32's)", kinds)])


def _causal(records: Sequence[Record]) -> str:
    return _pivot(records, "ms (times tam_fast's)")


def _answer(records: Sequence[Record]) -> str:
    timed = [row for row in records if row.unit == "ms"]
    counts = sorted({row.threads for row in timed})
    header = ["ms (times tam_fast's)", *(f"{n} thread{'s' * (n > 1)}" for n in counts)]
    case = timed[0].case
    rows = [
        [name, *(_cell(find(timed, case, name, count)) for count in counts)]
        for name in _unique([row.name for row in timed])
    ]
    notes = _unique([f"{row.name}: {row.note}" for row in timed if row.note])
    memory = {row.name: row.p50 for row in records if row.unit != "ms"}
    return "\n\n".join(
        [
            f"{case}:",
            _grid(header, rows),
            "; ".join([*notes]) + ".",
            f"Memory: states and maps are {number(memory['states + maps'])} MiB; the peak beyond the inputs is "
            f"{number(memory['peak beyond the inputs'])} MiB, so that states and peak are "
            f"{factor(memory['(states + peak) / (states + maps)'])} states and maps.",
        ]
    )


def _linear(records: Sequence[Record]) -> str:
    once = [row for row in records if row.case.endswith("once")]
    swept = [row for row in records if row not in once]
    cases = _unique([row.case for row in swept])
    names = _unique([row.name for row in swept])
    rows = [
        [
            case,
            *(number(found.p50) if (found := find(swept, case, name)) else "–" for name in names),
            number(_nanoseconds(swept, case)),
        ]
        for case in cases
    ]
    text = [
        _grid([f"C = {LINEAR_CHANNELS}", *(f"{name}, ms" for name in names), "total, ns a token and position"], rows)
    ]
    if once:
        values = {row.name: row for row in once}
        text.append(
            f"{once[0].case.removesuffix(', once')}, once: {number(values['total'].p50 / 1e3)} s; states and maps "
            f"{number(values['states + maps'].p50)} MiB, peak beyond the inputs "
            f"{number(values['peak beyond the inputs'].p50)} MiB."
        )
    text.append("![time by tokens and by positions](bench/results/linear.png)")
    return "\n\n".join(text)


def _nanoseconds(records: Sequence[Record], case: str) -> float:
    words = case.split()
    row = find(records, case, "total")
    return row.p50 * 1e6 / (int(words[0]) * int(words[2])) if row else float("nan")


def _overhead(records: Sequence[Record]) -> str:
    rows = [
        [f"{row.case}: {row.name}" if "import" in row.case else row.name, f"{_spread(row)} {row.unit}", row.note]
        for row in records
        if row.unit
    ]
    return _grid(["one 36x36 map; importing", "p50 (p20 to p80)", ""], rows, words=3)


def _threads(records: Sequence[Record]) -> str:
    rows = []
    for row in records:
        speedup = 1 / row.ratio_p50 if row.ratio_p50 else float("nan")
        rows.append([row.case, str(row.threads), f"{_spread(row)} {row.unit}", factor(speedup)])
    return _grid(["", "threads", "p50 (p20 to p80)", "as fast as one"], rows)


def _explain(records: Sequence[Record]) -> str:
    timed = [row for row in records if row.unit == "s"]
    shares = {(row.case, row.name.partition(":")[0]): row for row in records if row.unit == "% of generate()"}
    rows = []
    for row in timed:
        share = shares.get((row.case, row.name))
        rows.append(
            [row.case, row.name, f"{number(row.p50)} s", _ratio_spread(row), f"{_spread(share)} %" if share else ""]
        )
    text = [_grid(["", "", "p50", "ratio to generate (p20 to p80)", "within tam_fast (p20 to p80)"], rows, words=2)]
    memory = [row for row in records if row.unit == "MiB"]
    if memory:
        base = memory[0].p50
        peaks = ", ".join(f"{row.name} {number(row.p50)} MiB ({row.p50 / base:.3f})" for row in memory)
        text.append(f"Peak resident memory at the larger size, a fresh process each: {peaks}.")
    return "\n\n".join(text)


# What methods are measured by: the rows that are none themselves.
METHOD_BASES = (
    "a plain forward pass",
    "forward, and a backward a token, untouched",
    "all attention matrices, stored",
)


def _methods(records: Sequence[Record]) -> str:
    """Methods down; across, of each case, time and memory, both with the times of a plain forward pass."""
    cases = _unique([row.case for row in records])

    def cell(name: str, case: str, unit: str) -> str:
        found = [row for row in records if (row.case, row.name) == (case, name)]
        for row in found:
            if row.unit == unit:
                return f"{_cell(row)} {row.note if unit == 'ms a token' else ''}".strip()
        return "–"

    head = [""]
    for case in cases:
        head += [f"{case}: ms a token (answer, times a forward)", "MiB (times)"]
    rows = [
        [name, *(cell(name, case, unit) for case in cases for unit in ("ms a token", "MiB"))]
        for name in _unique([row.name for row in records])
    ]
    samples = [row.samples for row in records if row.unit == "ms a token"]
    out: dict[str, list[str]] = {}
    for row in records:
        if row.unit == "left out":
            out.setdefault(row.note, []).append(f"{row.name} ({row.case.split(', ')[1]})")
    left = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in out.items())
    threads = f"{records[0].threads} thread{'s' * (records[0].threads > 1)}"
    how = f"Medians of {min(samples)} to {max(samples)} turns, {threads}, the processor's time."
    parts = [_grid(head, rows), f"{how} Left out: {left}." if left else how]
    return "\n\n".join([*parts, *_between_methods(records, cases)])


def _between_methods(records: Sequence[Record], cases: Sequence[str]) -> list[str]:
    """Compare relevance with plain gradients, and what rollout adds to a forward pass with what it never stores."""
    values = {(row.case, row.name, row.unit): row.p50 for row in records}
    forward, backward, matrices = METHOD_BASES

    def told(text: str, unit: str, name: str, base: str, less: str = "") -> list[str]:
        ratios = []
        for case in cases:
            found = [values.get((case, which, unit)) for which in (name, base)]
            if None in found:
                return []
            beyond = values.get((case, less, unit), 0.0)
            ratios.append(number((values[case, name, unit] - beyond) / values[case, base, unit]))
        return [text.format(", ".join(ratios))]

    lines = told("`attn_lrp` takes {} times the forward and backward passes", "ms a token", "attn_lrp", backward)
    lines += told("beyond a forward pass `rollout` needs {} times all matrices", "MiB", "rollout", matrices, forward)
    return [f"By case: {'; '.join(lines)}."] if lines else []


SUMMARY = ("answer", "causal", "filter")
# Rows of the summary: what each way is called in the three tables.
_WAYS = (
    ("**tam_fast**", "tam_fast.activation_maps", "tam_fast", "tam_fast"),
    ("torch, vectorised", "torch, vectorised", "torch, vectorised", "torch unfold + sort"),
    ("numpy, vectorised", "numpy, vectorised", "numpy, vectorised", "numpy windows + sort"),
    (
        "the published program's steps",
        "published program's steps after its logits",
        "published way, token by token",
        "plain Python loop",
    ),
    ("its product over the vocabulary, before them", "product over the vocabulary (torch)", "", ""),
    ("scipy generic_filter + callback", "", "", "scipy generic_filter + callback"),
    ("scipy median_filter, the median only", "", "", "scipy median_filter (median only)"),
    ("kornia median_blur, the median only", "", "", "kornia median_blur (median only)"),
    ("cv2.medianBlur, the median only", "", "", "cv2.medianBlur (median only)"),
)


def _summary(results: Results) -> str:
    answer, causal, filtered = (results[name][0] for name in SUMMARY)
    counts = sorted({row.threads for row in answer if row.unit == "ms"})
    header = [
        "",
        *(f"whole answer, {n} thread{'s' * (n > 1)}, ms" for n in counts),
        "causal inference, ms",
        "filter, ns a pixel",
    ]
    rows = []
    for title, of_answer, of_causal, of_filter in _WAYS:
        found = [find(answer, answer[0].case, of_answer, n) for n in counts]
        found += [find(causal, causal[-1].case, of_causal), find(filtered, filtered[0].case, of_filter)]
        if any(found):
            rows.append([title, *(_cell(row) for row in found)])
    text = (
        f"From hidden states to finished maps ({answer[0].case}); causal inference ({causal[-1].case}) and rank "
        f"Gaussian filter ({filtered[0].case}) on one thread; float32, medians, in brackets the ratio to tam_fast:"
    )
    return "\n\n".join([text, _grid(header, rows), _machines({name: results[name] for name in SUMMARY})])


def _machines(results: Results) -> str:
    """On what the tables were measured: once if it is the same for all, else by table."""
    lines: dict[str, list[str]] = {}
    for name, (_, measured_on) in results.items():
        lines.setdefault(machine.line(dict(measured_on)), []).append(name)
    if len(lines) == 1:
        return f"{next(iter(lines))}; `python -m bench`."
    return " ".join(f"{', '.join(names)}: {text}." for text, names in lines.items()) + " By `python -m bench`."


def _share(row: Record) -> str:
    """Time, and the share of a copy's bandwidth that it is; `row` has its ratio to the copy of as many bytes."""
    return f"{number(row.p50)} us" + ("" if not row.ratio_p50 else f" ({100 / row.ratio_p50:.0f} %)")


def _gpu_filter(records: Sequence[Record]) -> str:
    bandwidth = [row for row in records if row.unit == "GB/s"]
    timed = [row for row in records if row.unit == "us" and row.case not in {row.case for row in bandwidth}]
    cases = _unique([row.case for row in timed])
    rows = [
        [name, *("–" if (row := find(timed, case, name)) is None else _share(row) for case in cases)]
        for name in _unique([row.name for row in timed])
    ]
    text = [_grid(["time (share of the bandwidth of a copy of the same maps)", *cases], rows)]
    if bandwidth:
        best = max(bandwidth, key=lambda row: row.p50)
        text.append(f"Inputs rotate, so that none is in the cache. {best.case}: {number(best.p50)} GB/s.")
    return "\n\n".join(text)


def _gpu_times(records: Sequence[Record]) -> str:
    """Each case of its own: they have few ways in common."""
    rows = []
    for row in records:
        ratio = "" if row.ratio_p50 is None else factor(row.ratio_p50)
        rows.append([row.case, row.name, f"{_spread(row)} {row.unit}", ratio])
    for before, row in zip(reversed(rows[:-1]), reversed(rows[1:]), strict=True):
        row[0] = "" if row[0] == before[0] else row[0]
    return _grid(["", "", "p50 (p20 to p80)", "ratio"], rows, words=2)


NOT_MEASURED = "Not yet measured. `bench/gpu_visit.sh` builds, tests and measures on a machine with a GPU."


def on_a_gpu(results: Results) -> str:
    """The tables of a GPU, or that there are none."""
    parts = []
    for name, title in gpu.TABLES.items():
        if name in results:
            records, measured_on = results[name]
            render = _gpu_filter if name == "filter" else _gpu_times
            parts += [f"{title}:", render(records), f"{machine.gpu_line(measured_on)}; `python -m bench.gpu {name}`."]
    return "\n\n".join(parts) or NOT_MEASURED


def load_gpu(folder: Path) -> dict[str, tuple[list[Record], dict[str, str]]]:
    """Read the results of every table of a GPU that has some."""
    files = {name: folder / gpu.file_name(name) for name in gpu.TABLES}
    return {name: read(file) for name, file in files.items() if file.is_file()}


_RENDER = {
    "filter": _filter,
    "isa": _isa,
    "causal": _causal,
    "answer": _answer,
    "linear": _linear,
    "overhead": _overhead,
    "threads": _threads,
    "explain": _explain,
    "methods": _methods,
}


def contents(results: Results) -> dict[str, str]:
    """What goes between each pair of markers, of the tables that there are results of."""
    made = {name: _RENDER[name](results[name][0]) for name in TABLES if name in results}
    if all(name in results for name in SUMMARY):
        made["summary"] = _summary(results)
    if results:
        made["machine"] = _machines(results)
    return made


def load(folder: Path) -> dict[str, tuple[list[Record], dict[str, str]]]:
    """Read the results of every table that has some."""
    return {name: read(folder / f"{name}.csv") for name in TABLES if (folder / f"{name}.csv").is_file()}


def update(root: Path, results: Results, of_gpu: Results | None = None) -> list[str]:
    """Rewrite the tables of all pages, and what they say of a GPU if that is given; returns the names of those made.

    Raises
    ------
    MarkerError
        If a table has no place on them, or more than one; nothing is written then.
    """
    before = pages = texts(root)
    made = contents(results)
    if of_gpu is not None:
        made["gpu"] = on_a_gpu(of_gpu)
    for name, content in made.items():
        pages = replace(pages, name, content)
    for page, text in pages.items():
        if text != before[page]:
            (root / page).write_text(text, encoding="utf-8")
    return list(made)


def markers(pages: Texts) -> list[str]:
    """Names of the markers on some pages."""
    return [name for text in pages.values() for name in re.findall(r"<!-- bench:(\S+) -->", text)]


def put(page: Path, name: str, content: str) -> None:
    """Put tables between a page's markers ``<!-- name -->`` and ``<!-- /name -->``.

    Raises
    ------
    ValueError
        If they are not there once each, in this order.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page.name}: expected {begin} and {end} once each, in this order")
    head, rest = text.split(begin)
    page.write_text(f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}", encoding="utf-8")
