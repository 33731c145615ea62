"""Rules of a campaign: faults, checkpoints and what they are played with."""

from __future__ import annotations

from collections.abc import Callable

from colossim.catalog.faults import OWNERS, Component, Effect
from colossim.scenario.schema import Scenario
from colossim.units import format_time

#: Fabrics whose nodes hang on leaf switches.
LEAFY = ("rail-optimized", "fat-tree")
#: What an effect can be of, where not of all.
_OF: dict[Effect, tuple[Component, ...]] = {"degrade": ("gpu",), "slow": ("gpu", "node")}


def check_campaign(scenario: Scenario, report: Callable[[str, str], None]) -> None:
    """All that doesn't need the layout of the job."""
    if scenario.job.batch_ramp is not None and (scenario.faults or scenario.run.duration is not None):
        report("job.batch_ramp", "weeks of a batch that grows can't be played yet: leave it out")
    _check_faults(scenario, report)
    _check_checkpoint(scenario, report)


def _check_faults(scenario: Scenario, report: Callable[[str, str], None]) -> None:
    faults, fabric = scenario.faults, scenario.cluster.fabric
    if faults is None:
        return
    if not faults.classes:
        report("faults", "has no class of faults: name a profile, or write some, such as `gpu: {mtbf: 80000 h}`")
    for name, kind in faults.classes.items():
        owner = faults.owner(name)
        if owner is None:
            message = "is no component that is known: say `per` (gpu, node, leaf or job) in it, or name it one of"
            report(f"faults.{name}", f"{message} {', '.join(OWNERS)}")
        elif owner == "leaf" and fabric.type not in LEAFY:
            report(f"faults.{name}", f"a fabric of type {fabric.type} has no leaf switches that could fail")
        elif owner not in _OF.get(kind.effect, (owner,)):
            whose = " or ".join(_OF[kind.effect])
            report(f"faults.{name}.effect", f"{kind.effect} is of a {whose}, not of a {owner}: stop would do")
    if scenario.checkpoint is None and any(kind.stops for kind in faults.classes.values()):
        message = "need to know what a restart costs: say `checkpoint: {interval, write, restart}`, too"
        report("faults", message)


def _check_checkpoint(scenario: Scenario, report: Callable[[str, str], None]) -> None:
    checkpoint, faults = scenario.checkpoint, scenario.faults
    if checkpoint is None:
        return
    interval, write, durable = checkpoint.interval, checkpoint.write, checkpoint.durable
    if durable is not None and not checkpoint.asynchronous:
        message = "is of asynchronous writes, others can be restarted from when they end: leave it out"
        report("checkpoint.durable", message)
    elif durable is not None and durable < write:
        message = f"{format_time(durable)}: the copy that blocks takes {format_time(write)} of it: say at least as much"
        report("checkpoint.durable", message)
    if checkpoint.best:
        if not write or faults is None or not any(kind.stops for kind in faults.classes.values()):
            missing = "checkpoints that take time" if not write else "faults that stop the job"
            report("checkpoint.interval", f"an optimal one needs {missing}: say how long it is")
        return
    if write >= interval:
        message = (
            f"{format_time(write)} is no shorter than the interval of {format_time(interval)}: the job would write more than"
            " it trains"
        )
        report("checkpoint.write", message)
    elif (late := unfinished(durable, interval, write)) is not None:
        report("checkpoint.durable", late)


def unfinished(durable: float | None, interval: float, write: float) -> str | None:
    """What is wrong with checkpoints that are durable after so long; None if nothing is. All in s."""
    if durable is None or durable <= interval + write:
        return None
    return f"{format_time(durable)}: the next write, {format_time(interval + write)} later, would find it unfinished"
