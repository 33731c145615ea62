"""colossim: a discrete-event simulator of GPU training clusters.

    import colossim
    scenario = colossim.load_scenario("two-pods")
    result = colossim.simulate(scenario)
    print(result)
    colossim.plot.timeline(result)

The names below are imported when first used, so that `import colossim` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "DoesNotFit": "colossim.errors",
    "Result": "colossim.result.result",
    "Scenario": "colossim.scenario.schema",
    "ScenarioError": "colossim.errors",
    "SimulationError": "colossim.errors",
    "TooManyClasses": "colossim.errors",
    "build_cluster": "colossim.cluster",
    "load_scenario": "colossim.scenario.reader",
    "load_variants": "colossim.scenario.variants",
    "offer": "colossim.offered",
    "simulate": "colossim.simulation",
    "simulate_jobs": "colossim.jobs",
    "validate": "colossim.validation",
    "with_graph": "colossim.scenario.files",
}
_ROOMS = ("catalog", "plot")

__all__ = ["__version__", *_WHERE, *_ROOMS]

if TYPE_CHECKING:
    from colossim import catalog, plot
    from colossim.cluster import build_cluster
    from colossim.errors import DoesNotFit, ScenarioError, SimulationError, TooManyClasses
    from colossim.jobs import simulate_jobs
    from colossim.offered import offer
    from colossim.result.result import Result
    from colossim.scenario.files import with_graph
    from colossim.scenario.reader import load_scenario
    from colossim.scenario.schema import Scenario
    from colossim.scenario.variants import load_variants
    from colossim.simulation import simulate
    from colossim.validation import validate


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"colossim.{name}")
    raise AttributeError(f"module 'colossim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
