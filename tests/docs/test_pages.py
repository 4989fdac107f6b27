"""What README.md and docs/ say: links lead somewhere, Python runs, commands parse, tables agree with the code."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import conftest_cli
import pytest
import tolerances
import typer.main
from places import ROOT

from tam_fast.backends.selection import BACKENDS
from tam_fast.cli.app import app
from tam_fast.cli.console import EPILOG, ExitCode
from tam_fast.models.families import FAMILIES

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS: Any = typer.main.get_command(app)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCE.sub("", read(page))


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a cell."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and cells(line)[0] == first)
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows


# Links


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", [path for path in DOCS if path.name != "README.md"], ids=name)
def test_every_page_can_be_found(page: Path) -> None:
    assert f"](docs/{page.name})" in read("README.md")
    assert f"]({page.name})" in read("docs/README.md")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_files_that_are_named_are_there(page: Path) -> None:
    for code in inline_code(page):
        if re.fullmatch(r"(bench|csrc|docs|tam_fast|tests)/[\w/.-]+\.\w+", code):
            assert (ROOT / code).is_file(), code
        elif re.fullmatch(r"[a-z]+/[\w/]*\w\.py", code) and (ROOT / "tam_fast" / code.partition("/")[0]).is_dir():
            assert (ROOT / "tam_fast" / code).is_file(), f"{code}, in tam_fast/"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_that_are_named_are_there(page: Path) -> None:
    for code in inline_code(page):
        if not re.fullmatch(r"tam_fast(\.\w+)+(\(.*\))?", code):
            continue
        if code.startswith("tam_fast.backends.triton."):
            pytest.importorskip("triton")
        module, *parts = code.partition("(")[0].split(".")
        found: Any = importlib.import_module(module)
        for part in parts:
            module = f"{module}.{part}"
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(module)


# Code


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def run(page: Path) -> dict[str, Any]:
    """Run a page's Python, block after block; tracebacks show its lines."""
    text = read(page)
    space: dict[str, Any] = {"__name__": "__page__"}
    for match in FENCE.finditer(text):
        if match[1] == "python":
            before = text.count("\n", 0, match.start(2))
            exec(compile("\n" * before + match[2], str(page), "exec"), space)
    return space


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in read(page)], ids=name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = run(page)
    if page.name == "README.md":
        assert f'of "{space["e"].text}"' in read(page), "the picture shows another answer"
        assert (tmp_path / "star.png").is_file()


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command on a page."""
    for language, block in FENCE.findall(read(page)):
        if not language:
            for line in block.splitlines():
                yield from split(line)
    for code in inline_code(page):
        if code.startswith(("pip install ", "python -m ", "pytest", "tam-fast ")):
            yield from split(code)


def split(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word != "&&":
            words.append(word)
        elif words:
            yield words[: words.index(">")] if ">" in words else words
            words = []


def check_tam_fast(words: list[str]) -> None:
    """Refuse a command that there is not, or an option that it does not have."""
    if words and words[0].startswith("-"):
        assert set(words) <= {"--version", "-h", "--help"}
        return
    command = COMMANDS.commands[words[0]]
    if words[-1] in options(words[0]):
        words = words[:-1]  # one that is only named, without its value
    command.make_context(words[0], words[1:])


def options(command: str) -> set[str]:
    found: set[str] = set()
    for parameter in COMMANDS.commands[command].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            found |= set(parameter.opts)
    return found


def check_pip(words: list[str]) -> None:
    defined = "".join(read(file) for file in ("CMakeLists.txt", "csrc/CMakeLists.txt"))
    extra = read("pyproject.toml").partition("[project.optional-dependencies]")[2].split("\n[")[0]
    assert words[0] == "install"
    for option, value in pairwise(words):
        if option == "-c":
            assert (ROOT / value).is_file()
        elif option == "-C":
            variable = value.removeprefix("cmake.define.").partition("=")[0]
            assert variable.startswith("CMAKE_") or f"{variable} " in defined, value
    for word in words:
        for extras in re.findall(r"\[(.+)\]", word):
            assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = ", extra, re.MULTILINE)), word


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    assert words[0] == "-m"
    assert importlib.util.find_spec(words[1]) is not None, words[1]
    if words[1] in ("bench", "bench.gpu"):
        importlib.import_module(f"{words[1]}.__main__").parse(words[2:])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    for program, *words in commands(page):
        if program == "tam-fast":
            check_tam_fast(words)
        elif program == "pip":
            check_pip(words)
        elif program == "python":
            check_python(words)
        else:
            assert program == "pytest", f"nobody checks {program}"


# Tables


@pytest.mark.parametrize("command", sorted(COMMANDS.commands))
def test_the_command_line_has_these_options(command: str) -> None:
    section = read("docs/command-line.md").partition(f"\n## tam-fast {command}\n")[2].split("\n## ")[0]
    shown = {word for row in table(section, "option") for word in re.findall(r"`(-[\w-]+)`", row[0])}
    assert shown == options(command)


def test_exit_codes() -> None:
    shown = {int(row[0]): row[1].replace("`", "") for row in table(read("docs/command-line.md"), "exit code")}
    assert shown == {int(code): text for code, text in re.findall(r"^  (\d)  (.+)$", EPILOG, re.MULTILINE)}
    assert list(shown) == sorted(map(int, ExitCode))


def test_environment_variables() -> None:
    shown = {row[0].strip("`"): row for row in table(read("docs/backends.md"), "variable")}
    sources = [*(ROOT / "tam_fast").rglob("*.py"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    assert set(shown) == {found for file in sources for found in re.findall(r'"(TAM_FAST_[A-Z_]+)"', read(file))}
    assert re.findall(r"`(\w+)`", shown["TAM_FAST_BACKEND"][1]) == list(BACKENDS)
    assert [row[0].strip("`") for row in table(read("docs/backends.md"), "backend")] == list(BACKENDS)


def test_variables_of_other_tools() -> None:
    known = "".join(read(file) for file in ("CMakeLists.txt", "csrc/CMakeLists.txt", "bench/gpu_visit.sh"))
    known += "".join(read(file) for file in (ROOT / "tam_fast").rglob("*.py"))
    for page in PAGES:
        for variable in re.findall(r"TAM_FAST_[A-Z_]+", read(page)):
            assert re.search(rf"\b{variable}\b", known) or f"{variable}\n" in known, (name(page), variable)


def test_tables_of_the_package() -> None:
    pytest.importorskip("triton")
    from tam_fast.backends.triton import tuning

    folder = tuning._SHIPPED.relative_to(Path(tuning.__file__).parents[3]).as_posix()
    assert f"`{folder}/`" in read("docs/backends.md")
    assert len(list(tuning._SHIPPED.glob("*.json"))) == 0, "the page says that there are none yet"


def test_tolerances() -> None:
    text = read("docs/numerics.md")
    shown = {row[3].strip("`"): row[2] for row in table(text[text.index("## Accuracy") :], "what")}
    every = {name: value for name, value in vars(tolerances).items() if name.isupper()}
    assert set(shown) == set(every)
    for key, value in every.items():
        assert re.fullmatch(r"[\d.e^+ -]+", shown[key]), shown[key]
        assert eval(shown[key].replace("^", "**")) == pytest.approx(value, rel=1e-12), key


def between(text: str, name: str) -> str:
    """Return what stands between the comments ``<!-- name -->`` and ``<!-- /name -->``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    return text[text.index(begin) + len(begin) : text.index(end)]


def test_table_of_models() -> None:
    """The table is what the command prints; ``tam-fast models --markdown`` makes it anew."""
    shown = between(read("docs/models.md"), "models").splitlines()
    rows = conftest_cli.run("models", "--markdown").stdout.splitlines()
    assert shown == [row for row in rows if "registered by the user" not in row]  # that of the page's own example


def test_families_of_the_readme() -> None:
    groups: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        if not family.unproven:
            groups.setdefault(family.group, []).append(family.title)
    expected = ["| layout of the visual tokens | families |", "|---|---|"]
    expected += [f"| {group} | {', '.join(titles)} |" for group, titles in groups.items()]
    assert between(read("README.md"), "families").splitlines() == expected
