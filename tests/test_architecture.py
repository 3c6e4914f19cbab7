"""The rooms: imports run one way, and only those named here know torch, transformers, datasets and Flower."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "fedasym").rglob("*.py"))
SOURCES = [
    *PACKAGE,
    *sorted(path for part in ("server", "clients", "simulations") for path in (ROOT / part).rglob("*.py")),
]
# From the bottom up: a room imports only rooms before it.
ROOMS = (
    "fields", "rng", "files", "plugins", "ops", "adapters", "aggregation", "methods", "tasks", "data", "models",
    "training", "wire", "settings", "runs", "reports",
)  # fmt: skip
SIMULATIONS = (
    "interrupts", "pretrain", "cli", "engines", "run", "folders", "cost", "study", "predict", "demo", "federation",
    "versions", "__main__",
)  # fmt: skip
# Which room knows which of the heavy libraries, lazily (inside a function) too; all others none.
HEAVY = {"torch", "transformers", "datasets", "flwr_datasets", "flwr", "ray", "peft"}
KNOWS = {
    "adapters": {"torch"},
    "data": {"datasets"},  # and flwr-datasets' partitioners, by their name
    "models": {"torch", "transformers"},
    "tasks": {"torch"},
    "training": {"torch"},
    "wire": {"flwr"},
    "runs": {"torch", "transformers"},
}
ALONE = ("adapters", "aggregation", "methods")  # useful outside this project: they know none of our settings


def imported(path: Path) -> set[str]:
    """All names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    """The folder directly below fedasym/, server/ and so on, or the file itself."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


def crossings(part: str) -> Iterator[tuple[Path, str, str]]:
    """Every import of one room of a part by another: file, its room, the other."""
    for path in sorted((ROOT / part).rglob("*.py")):
        for name in imported(path):
            if name.startswith(f"{part}.") and (room := name.split(".")[1]) != room_of(path):
                yield path, room_of(path), room


def test_imports_among_the_rooms_of_the_package_run_one_way() -> None:
    assert {room_of(path) for path in PACKAGE} - {"__init__"} == set(ROOMS)
    wrong = [
        f"{name_of(path)} imports {room}"
        for path, here, room in crossings("fedasym")
        if here != "__init__" and room in ROOMS and ROOMS.index(room) >= ROOMS.index(here)
    ]
    assert not wrong


def test_imports_among_the_folders_of_simulations_run_one_way() -> None:
    assert {room_of(path) for path in (ROOT / "simulations").rglob("*.py")} - {"__init__"} == set(SIMULATIONS)
    wrong = [
        f"{name_of(path)} imports {room}"
        for path, here, room in crossings("simulations")
        if SIMULATIONS.index(room) >= SIMULATIONS.index(here)
    ]
    assert not wrong


def test_server_clients_and_simulations_point_at_the_package_and_server_and_clients_never_meet() -> None:
    allowed = {"fedasym": set(), "server": {"fedasym"}, "clients": {"fedasym"}}
    allowed["simulations"] = {"fedasym", "server", "clients"}
    ours = {*allowed, "tests", "benchmarks"}
    wrong = []
    for path in SOURCES:
        part = path.relative_to(ROOT).parts[0]
        wrong += [f"{name_of(path)} imports {other}" for other in (tops(path) & ours) - allowed[part] - {part}]
    assert not wrong


def test_only_the_rooms_named_here_know_heavy_libraries() -> None:
    known: dict[str, set[str]] = {}
    for path in PACKAGE:
        known.setdefault(room_of(path), set()).update(tops(path) & HEAVY)
    assert {room: found for room, found in known.items() if found} == KNOWS
    wrong = [
        name_of(path)
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in ("server", "clients") and tops(path) & HEAVY - {"torch", "flwr"}
    ]
    assert not wrong


def test_adapters_aggregation_and_methods_know_none_of_our_settings() -> None:
    wrong = [(name_of(path), room) for path, here, room in crossings("fedasym") if here in ALONE and room == "settings"]
    assert not wrong


def test_one_file_names_devices_and_autocast() -> None:
    names = re.compile(r"\btorch\.(cuda|mps|autocast|backends|use_deterministic_algorithms|set_num_threads)\b")
    found = {name_of(path) for path in SOURCES if names.search(path.read_text())}
    assert found == {"fedasym/models/device.py"}


def test_flower_is_imported_from_its_public_places_alone() -> None:
    public = ("flwr.app.", "flwr.clientapp.", "flwr.serverapp.")
    # The first plays Flower's part in one process; the second stands between a bundle and its first import; the last
    # counts what Flower's transport would send.
    exempt = {
        "simulations/engines/grid.py",
        "clients/deploy/bundle_guard.py",
        "server/round/inbox.py",
        "fedasym/wire/records.py",
    }
    private = {
        name_of(path)
        for path in SOURCES
        for name in imported(path)
        if name.startswith("flwr.") and not f"{name}.".startswith(public)
    }
    assert private == exempt


def test_importing_the_package_loads_neither_flower_nor_transformers_nor_datasets() -> None:
    code = (
        "import sys, fedasym, fedasym.settings, fedasym.runs.checkpoint, fedasym.training.loop\n"
        "import fedasym.reports.run_report\n"
        f"print(sorted({HEAVY - {'torch'}!r} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_no_file_has_the_name_of_a_module_of_the_standard_library_and_no_two_files_the_same() -> None:
    names = [path.stem for path in SOURCES if not path.stem.startswith("__")]
    assert not set(names) & sys.stdlib_module_names
    # The apps, the two entries "up" and the one-word ends of a name that their folder completes.
    shared = {name for name in names if names.count(name) > 1}
    assert shared <= {"app", "up", "base", "session", "settings", "run"}


def test_every_public_function_and_class_says_what_it_is() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        missing += [] if ast.get_docstring(tree) else [name_of(path)]
        nodes: list[ast.stmt] = list(tree.body)
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                missing += [] if ast.get_docstring(node) else [f"{name_of(path)}: {node.name}"]
                if isinstance(node, ast.ClassDef):
                    nodes.extend(node.body)
    assert not missing


def test_no_file_is_longer_than_400_lines() -> None:
    long = [name_of(p) for p in [*SOURCES, *(ROOT / "tests").rglob("*.py")] if len(p.read_text().splitlines()) > 400]
    assert not long


def test_nobody_calls_a_global_generator() -> None:
    calls = re.compile(
        r"\b(np|numpy)\.random\.(seed|rand|randn|normal|choice|permutation|shuffle)\(|"
        r"\btorch\.(manual_seed|rand|randn|randperm|randint)\(|\brandom\.(seed|random|sample|shuffle|choice)\("
    )
    assert not [name_of(path) for path in SOURCES if calls.search(path.read_text())]
