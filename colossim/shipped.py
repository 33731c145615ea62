"""Where the scenarios that ship are: inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from colossim.errors import Problem, ScenarioError

_PACKAGE = Path(__file__).parent


def scenarios_folder() -> Path:
    """The folder of the scenarios that ship."""
    inside = _PACKAGE / "_scenarios"
    return inside if inside.is_dir() else _PACKAGE.parent / "scenarios"


def scenario_names() -> list[str]:
    """Names of the scenarios that ship, sorted; those of published runs are `published_names`."""
    return sorted(path.stem for path in scenarios_folder().glob("*.yaml"))


def published_names() -> list[str]:
    """Names of the scenarios of published runs, one a source, sorted."""
    return sorted(path.stem for path in (scenarios_folder() / "published").glob("*.yaml"))


def scenario_path(source: str | Path) -> Path:
    """The file of a scenario: a path, or the name of one that ships. Raises ScenarioError with the nearest name."""
    path = Path(source)
    if isinstance(source, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or os.path.isfile(path):
        return path
    known, published = scenario_names(), published_names()
    if source in known:
        return scenarios_folder() / f"{source}.yaml"
    if source in published:
        return scenarios_folder() / "published" / f"{source}.yaml"
    known += published
    near = difflib.get_close_matches(str(source), known, n=1, cutoff=0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"those that ship: {', '.join(known)}"
    raise ScenarioError([Problem("", f"`{source}` is neither a file nor a scenario that ships: {hint}")])
