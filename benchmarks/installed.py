"""How many packages, of how many bytes, each of our extras brings, from this environment. One JSON line; see --out."""

import csv
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.result_line import machine, make_parser, say

ROOT = Path(__file__).resolve().parents[1]
SETS = ("", "site", "server", "simulation", "all,demo,dev")  # by commas; "": the core alone


def requirements(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml names for the core and some extras, with the extras that these name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, todo, seen = [*map(Requirement, project["dependencies"])], [*extras], set()
    while todo:
        extra = todo.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for each in map(Requirement, project["optional-dependencies"][extra]):
            if each.name == project["name"]:
                todo += each.extras
            else:
                found.append(each)
    return found


def packages(*extras: str) -> dict[str, metadata.Distribution]:
    """Return what pip would install for the core and some extras, by name, as it is installed here.

    Raises:
        PackageNotFoundError: this environment lacks one of those that pyproject.toml names.
    """
    found = {}
    todo = [(each.name, frozenset(each.extras)) for each in requirements(*extras)]
    named = {canonicalize_name(name) for name, _ in todo}
    seen = set()
    while todo:
        package, wanted = todo.pop()
        name = canonicalize_name(package)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in named:
                raise
            continue  # a package of a package that somebody has left out here, as torch's setuptools
        for each in map(Requirement, found[name].requires or ()):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                todo.append((each.name, frozenset(each.extras)))
    return found


def files(package: metadata.Distribution) -> Iterator[tuple[str, int]]:
    """Yield a package's files, as paths from site-packages, and their sizes in bytes; 0 for what is compiled later."""
    for path, _, size in csv.reader((package.read_text("RECORD") or "").splitlines()):
        yield path, int(size or 0)


def main() -> None:
    """Measure every set of extras and print one line."""
    arguments = make_parser(__doc__).parse_args()
    result = {
        "benchmark": "installed",
        "unit": "bytes of the packages' files, without what Python compiles of them",
        **machine("torch"),
    }
    for extras in SETS:
        found = packages(*filter(None, extras.split(",")))
        size = sum(size for package in found.values() for _, size in files(package))
        result[extras or "core"] = {"packages": len(found), "bytes": size}
    say(result, arguments.out)


if __name__ == "__main__":
    main()
