"""The house: who may import whom, and what is imported only when it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

import colossim

ROOT = Path(colossim.__file__).parent
#: Floor of each room, by its first name below the package.
FLOORS = {
    "units": 0, "errors": 0, "draws": 0, "yaml12": 0, "shipped": 0, "processes": 0,
    "catalog": 1, "scenario": 1,
    "cluster": 2, "workload": 2, "maxmin": 2, "reliability": 2,
    "footprint": 3, "flows": 3, "patterns": 3, "dispatch": 3, "trees": 3, "writes": 3, "nccl": 3, "traffic": 3,
    "partition": 3, "quotient": 3, "fold": 3,
    "collective": 3, "legs": 3, "segments": 3, "messages": 3, "chunks": 3,
    "engine": 4,
    "result": 5, "plot": 5, "bookmark": 5,
    "shares": 6, "mix": 6, "site": 6, "capacity": 6, "supply": 6,
    "layout": 6, "simulation": 6, "validation": 6, "explain": 6, "batch": 6, "jobs": 6, "offered": 6, "alone": 6, "measured": 6,
    "options": 6, "benchmark_table": 6, "calibrate": 6, "constants": 6, "campaign": 6, "replicas": 6, "growth": 6,
    "jitter": 6, "damage": 6,
    "words": 7, "cli_collectives": 7, "cli_calibrate": 7, "cli": 7, "__main__": 8,
}  # fmt: skip
#: Rooms of one floor that build on each other, in this order.
FLOOR_3 = (
    "chunks", "messages", "segments", "legs", "collective", "fold", "quotient", "partition", "flows", "traffic",
    "nccl", "trees", "writes", "dispatch", "patterns", "footprint",
)  # fmt: skip
STAIRS = [
    *[("yaml12", "errors"), ("shipped", "errors"), ("processes", "errors"), ("scenario", "catalog")],
    *combinations(FLOOR_3, 2),
    *[
        ("result", "plot"),
        ("validation", "simulation"),
        ("mix", "shares"),
        ("capacity", "shares"),
        ("campaign", "damage"),
        ("explain", "damage"),
        ("growth", "damage"),
        *[
            ("simulation", below)
            for below in (
                "campaign",
                "growth",
                "jitter",
                "layout",
                "mix",
                "replicas",
                "capacity",
                "shares",
                "site",
                "supply",
            )
        ],
        *[("layout", below) for below in ("capacity", "shares", "site")],
        *[(above, "layout") for above in ("batch", "explain", "jobs")],
        ("growth", "campaign"),
        ("growth", "layout"),
        ("supply", "shares"),
        ("jobs", "site"),
        *[("explain", below) for below in ("campaign", "capacity", "mix", "shares")],
        ("calibrate", "constants"),
        ("calibrate", "simulation"),
        ("calibrate", "validation"),
        ("batch", "growth"),
        ("batch", "simulation"),
        ("jobs", "simulation"),
        ("batch", "jobs"),
        ("explain", "jobs"),
        ("batch", "offered"),
        ("measured", "alone"),
        ("options", "alone"),
        *[
            ("cli_collectives", "words"),
            ("cli", "words"),
            ("cli", "cli_collectives"),
            ("cli_calibrate", "words"),
            ("cli", "cli_calibrate"),
        ],
        *[("benchmark_table", below) for below in ("alone", "options", "site")],
    ],
]
LATE = {"matplotlib", "networkx", "pandas"}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(tree, *, top_only):
    """(module, line) of imports; `top_only` leaves out those in functions. Names for type checkers alone don't count."""

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"line {node.lineno}: a relative import hides whose room it is"
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if not top_only:
                    yield from walk(node.body)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from walk(node.orelse)
            else:
                # Handlers and match cases hold statements without being statements.
                inner = (ast.stmt, ast.ExceptHandler, ast.match_case)
                yield from walk(child for child in ast.iter_child_nodes(node) if isinstance(child, inner))

    return list(walk(tree.body))


def test_imports_are_found_wherever_they_stand():
    """Else the rules below would pass what they don't see."""
    code = (
        "import a\ntry:\n  import b\nexcept ImportError:\n  import c\nmatch 1:\n  case 1:\n    import d\n"
        "if TYPE_CHECKING:\n  import typed\nelse:\n  import e\nclass C:\n  import f\n  def g(self):\n    import late\n"
    )
    assert [name for name, _ in imports(ast.parse(code), top_only=True)] == list("abcdef")
    assert [name for name, _ in imports(ast.parse(code), top_only=False)] == [*"abcdef", "late"]
    with pytest.raises(AssertionError, match="relative"):
        imports(ast.parse("from . import a"), top_only=True)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path):
    mine = room(path)
    for name, line in imports(ast.parse(path.read_text()), top_only=False):
        if not name.startswith("colossim."):
            continue
        other = name.split(".")[1]
        if other in ("__version__", mine):
            continue
        below = FLOORS[other] < FLOORS[mine] or (mine, other) in STAIRS
        assert below, f"{path.name}:{line}: {mine} (floor {FLOORS[mine]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_late_and_simpy_by_the_engine_only(path):
    tree = ast.parse(path.read_text())
    for name, line in imports(tree, top_only=True):
        assert name.split(".")[0] not in LATE, f"{path.name}:{line}: {name} at the top of a module"
    for name, line in imports(tree, top_only=False):
        assert name.split(".")[0] != "simpy" or room(path) == "engine", f"{path.name}:{line}: SimPy lives in engine/"


def test_nothing_heavy_comes_with_the_simulation():
    code = "import sys, colossim; colossim.simulate; colossim.load_scenario; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not LATE & set(loaded)
    assert "simpy" in loaded


def test_the_package_alone_imports_nothing():
    code = "import sys, colossim; print(' '.join(m for m in sys.modules if m.startswith('colossim.')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_a_module_holds_one_idea():
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := p.read_text().count("\n")) > 400}
    assert not long
