"""Imports form a star, and only the files named here know torch, transformers, datasets and Flower."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "fedasym").rglob("*.py"))
SOURCES = [
    *PACKAGE,
    *sorted(path for room in ("server", "clients", "simulations") for path in (ROOT / room).rglob("*.py")),
]
# Who imports which of the heavy libraries, lazily (inside a function) too; all other files none.
HEAVY = {"torch", "transformers", "datasets", "flwr_datasets", "flwr", "ray", "peft"}
KNOWS = {
    "device": {"torch"},
    "recompute": {"torch", "transformers"},
    "behaviour": {"torch"},
    "layers": {"torch"},
    "lora": {"torch"},
    "train": {"torch"},
    "export": {"torch"},
    "model": {"torch", "transformers"},
    "pooling": {"torch", "transformers"},
    "footprint": {"torch", "transformers"},
    "sources": {"datasets"},
    "tokens": {"torch"},
    "partition": {"datasets"},  # and flwr-datasets' partitioners, by their name
    "wire": {"flwr"},
}
# Useful outside this project: of the package itself they know only one another.
PLAIN = {
    "layers": set(),
    "lora": {"layers", "projection"},
    "projection": {"chance"},
    "average": set(),
    "chance": set(),
    "metrics": set(),
}


def imported(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "fedasym").with_suffix("").parts)


@pytest.mark.parametrize("path", PACKAGE, ids=module)
def test_a_file_of_the_package_knows_exactly_what_is_named_here(path) -> None:
    assert rooms(path) & HEAVY == KNOWS.get(module(path), set())
    assert not rooms(path) & {"server", "clients", "simulations", "tests", "benchmarks"}


def test_server_and_clients_never_meet_and_know_the_package_alone() -> None:
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[0]
        if room in ("server", "clients"):
            assert rooms(path) & {"server", "clients", "simulations"} <= {room}, name_of(path)
            assert rooms(path) & HEAVY <= {"torch", "flwr"}, name_of(path)


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_modules_know_none_of_our_settings(name) -> None:
    ours = {i.split(".")[1] for i in imported(ROOT / "fedasym" / f"{name}.py") if i.startswith("fedasym.")}
    assert ours <= PLAIN[name]


def test_flower_is_imported_from_its_public_places_alone() -> None:
    public = ("flwr.app.", "flwr.clientapp.", "flwr.serverapp.")
    # The first plays Flower's part in one process; the second stands between a bundle and its first import.
    exempt = {"simulations/grid.py", "clients/guard.py"}
    for path in SOURCES:
        if name_of(path) not in exempt:
            private = {i for i in imported(path) if i.startswith("flwr.") and not f"{i}.".startswith(public)}
            assert not private, name_of(path)


def test_importing_the_package_loads_neither_flower_nor_transformers_nor_datasets() -> None:
    code = (
        "import sys, fedasym, fedasym.settings, fedasym.checkpoint, fedasym.train, fedasym.report\n"
        f"print(sorted({HEAVY - {'torch'}!r} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_public_function_and_class_says_what_it_is(path) -> None:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    missing, nodes = [] if ast.get_docstring(tree) else ["the module"], list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, kinds) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(node.name)
            if isinstance(node, ast.ClassDef):
                nodes.extend(node.body)
    assert not missing


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").glob("*.py"))], ids=name_of)
def test_no_file_is_longer_than_300_lines_without_a_reason_at_its_top(path) -> None:
    text = path.read_text()
    reason = re.search(r"\b(lines|long)\b", ast.get_docstring(ast.parse(text)) or "")
    assert len(text.splitlines()) <= 300 or reason


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nobody_calls_a_global_generator(path) -> None:
    calls = re.compile(
        r"\b(np|numpy)\.random\.(seed|rand|randn|normal|choice|permutation|shuffle)\(|"
        r"\btorch\.(manual_seed|rand|randn|randperm|randint)\(|\brandom\.(seed|random|sample|shuffle|choice)\("
    )
    assert not calls.search(path.read_text())
