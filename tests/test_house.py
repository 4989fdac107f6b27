"""The house as a whole: what the root hands on and when, and what no tool for imports can see."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tam_fast

HOUSE = Path(tam_fast.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
LONGEST = 700  # lines

HEAVY = ("torch", "numpy", "transformers", "PIL", "scipy", "triton", "safetensors", "typer", "rich")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_are_files() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_file_is_no_longer_than_a_room(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.name}: expected at most {LONGEST} lines, got {lines}: make rooms of it"


def test_only_compiled_modules_are_taken_from_the_root() -> None:
    taken = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "tam_fast" and not node.level:
                taken |= {(str(path.relative_to(HOUSE).parts[0]), name.name) for name in node.names}
            elif isinstance(node, ast.Import):
                assert all(name.name != "tam_fast" for name in node.names), path
    assert taken == {("backends", "_C"), ("backends", "_cuda")}


def stub_names() -> set[str]:
    for node in ast.parse((HOUSE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("the stub has no __all__")


def test_the_stub_says_what_the_root_hands_on() -> None:
    rooms = {room for room in tam_fast._ROOMS if room != "_C"}
    assert stub_names() == set(tam_fast.__all__) | rooms
    assert stub_names() <= set(dir(tam_fast))


def test_every_room_is_handed_on() -> None:
    """But for the command's, which nobody calls from Python."""
    folders = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert folders - {"cli"} == set(tam_fast._ROOMS) - {"_C"}


def test_the_stub_takes_every_name_from_its_home() -> None:
    homes = {}
    for node in ast.parse((HOUSE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tam_fast."):
            homes.update({alias.name: node.module.removeprefix("tam_fast.") for alias in node.names})
    assert homes == {**tam_fast._HOMES, "__version__": "_version"}


@pytest.mark.parametrize("name", sorted(tam_fast._HOMES))
def test_every_name_is_there(name: str) -> None:
    home = importlib.import_module(f"tam_fast.{tam_fast._HOMES[name]}")
    assert getattr(tam_fast, name) is getattr(home, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tam_fast' has no attribute 'pipelines'"):
        _ = tam_fast.pipelines  # type: ignore[attr-defined]


def test_importing_the_root_imports_nothing_heavy() -> None:
    loaded = run(f"import sys, tam_fast; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded == "[]"


REGISTERED = "print(hasattr(torch.ops.tam_fast, 'token_scores')); "


def test_operators_are_registered_at_once_where_torch_is_already_imported() -> None:
    assert run(f"import torch; import tam_fast; {REGISTERED}") == "True"


@pytest.mark.parametrize("use", ["tam_fast.Grid", "tam_fast.ModelNotSupportedError", "import tam_fast.operators"])
def test_operators_are_registered_by_the_first_name_where_torch_comes_later(use: str) -> None:
    assert run(f"import tam_fast; import torch; {REGISTERED} {use}; {REGISTERED}").split() == ["False", "True"]


def test_rooms_are_attributes_without_an_import_of_their_own() -> None:
    code = "import tam_fast; print(tam_fast.models.__name__, len(tam_fast.demo.sample_scenes()) > 0)"
    assert run(code) == "tam_fast.models True"
    code = "import tam_fast; print(len(tam_fast.methods.METHODS) > 20, tam_fast.evaluation.holm, tam_fast.dataset.run)"
    assert run(code).startswith("True <function holm")
