r"""The rooms of the package: which there are, and that imports go downwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyro_vae"

# From the lowest floor to the highest. A room imports from itself, and from the rooms on lower floors.
FLOORS = (
    {"errors"},
    {"batch", "runtime", "networks"},
    {"distributions"},
    {"vae", "engine", "datasets"},
    {"program"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"experiment", "plots"},
    {"comparison"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

# The same inside the engine.
ENGINE = ({"errors"}, {"capture"}, {"compilation"}, {"step"}, {"svi"})

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    return parts[1].removesuffix(".py") if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[tuple[str, ast.ImportFrom]]:
    """The modules of the package that a file imports from, inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("pyro_vae.") for alias in node.names), f"{path}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "pyro_vae"):
            assert node.level == 0, f"{path}: a relative import: {ast.unparse(node)}"
            yield str(node.module), node


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path):
    mine = room_of(path.relative_to(PACKAGE.parent).parts)
    for module, node in imports(path):
        its = room_of(tuple(module.split(".")))
        if its != mine:
            assert FLOOR[its] < FLOOR[mine], f"{mine} does not import from {its}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=name_of)
def test_modules_import_from_files_and_never_through_a_face(path):
    for module, node in imports(path):
        folder = PACKAGE.parent.joinpath(*module.split("."))
        for alias in node.names if folder.is_dir() else []:
            file = folder / f"{alias.name}.py"
            assert file.is_file(), f"name the file that defines `{alias.name}`: {ast.unparse(node)}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {}
    for path in MODULES:
        if path.name == "__init__.py":
            continue
        targets = set()
        for module, node in imports(path):
            folder = PACKAGE.parent.joinpath(*module.split("."))
            targets |= {folder / f"{alias.name}.py" for alias in node.names} if folder.is_dir() else {folder}
        graph[path] = {target.with_suffix(".py") for target in targets}
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(name_of(step) for step in (*way, path))
        if path not in done:
            for target in graph.get(path, ()):
                visit(target, (*way, path))
            done.add(path)

    for path in graph:
        visit(path, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "engine").rglob("*.py")), ids=name_of)
def test_imports_inside_the_engine_go_downwards(path):
    floor = {room: i for i, rooms in enumerate(ENGINE) for room in rooms}
    mine = path.relative_to(PACKAGE / "engine").parts[0].removesuffix(".py")
    for module, node in imports(path):
        parts = module.split(".")
        if mine in floor and parts[1] == "engine" and len(parts) > 2 and parts[2] != mine:
            assert floor[parts[2]] < floor[mine], f"{mine} does not import from {parts[2]}: {ast.unparse(node)}"


def test_few_files_lie_at_the_top():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "batch", "cli", "errors"}


def test_files_are_one_concept_long():
    lines = sorted(len(path.read_text().splitlines()) for path in MODULES if path.name != "__init__.py")
    assert lines[-1] <= 400
    assert 90 <= lines[len(lines) // 2] <= 160


TESTS = PACKAGE.parent / "tests"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_imports_another(path):
    """What several tests use lies in tests/support."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(part.startswith("test_") for name in names for part in name.split(".")), ast.unparse(node)


def test_tests_lie_in_the_room_of_what_they_test():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py") if path.parent != TESTS}
    assert folders <= rooms | {"properties", "faults", "benchmarks", "examples"}
