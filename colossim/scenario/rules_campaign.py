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
    _check_shrink(scenario, report)
    _check_faults(scenario, report)
    _check_checkpoint(scenario, report)


def _check_shrink(scenario: Scenario, report: Callable[[str, str], None]) -> None:
    if scenario.when_short != "shrink":
        return
    if len({group.type.gpus for group in scenario.cluster.nodes}) > 1:
        report(
            "when_short",
            "shrink needs nodes with as many GPUs each: with wait the job stands still until a node is back",
        )
    if scenario.job.balance == "speed" or scenario.job.groups:
        report(
            "when_short", "shrink needs replicas that are alike: with wait the job stands still until a node is back"
        )


def _check_faults(scenario: Scenario, report: Callable[[str, str], None]) -> None:
    faults, fabric = scenario.faults, scenario.cluster.fabric
    if faults is None:
        return
    if not faults.classes:
        report("faults", "has no class of faults: name a profile, or write some, such as `gpu: {mtbf: 80000 h}`")
    for name, kind in faults.classes.items():
        owner = faults.owner(name)
        if owner is None:
            message = "is no component that is known: say `per` (gpu, node, rack, leaf or job) in it, or name it one of"
            report(f"faults.{name}", f"{message} {', '.join(OWNERS)}")
        elif owner == "leaf" and fabric.type not in LEAFY:
            report(f"faults.{name}", f"a fabric of type {fabric.type} has no leaf switches that could fail")
        elif kind.hang and kind.effect != "stop":
            report(f"faults.{name}.hang", f"is of what stops the job, not of {kind.effect}: leave it out")
        elif kind.infant is not None and kind.shape != 1:
            report(f"faults.{name}.infant", "is of lives that are exponential otherwise: leave out `shape`, or this")
        elif owner == "rack" and kind.radius is None:
            report(
                f"faults.{name}.radius", "is missing: the nodes that a rack's fault takes at once, such as {nodes: 8}"
            )
        elif owner != "rack" and kind.radius is not None:
            report(f"faults.{name}.radius", f"is of a rack, not of a {owner}: `per: rack` would do")
        elif owner == "rack" and kind.effect != "stop":
            report(f"faults.{name}.effect", f"{kind.effect} is of no rack: stop would do")
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
    if checkpoint.storage is not None and checkpoint.storage.node is None and checkpoint.storage.total is None:
        report("checkpoint.storage", "says no rate: {node: 2 GB/s}, {total: 400 GB/s}, or both")
    if checkpoint.write is None and (checkpoint.storage is None or checkpoint.asynchronous):
        what = (
            "for which the copy to the host blocks" if checkpoint.asynchronous else "that a write takes, or `storage`"
        )
        report("checkpoint.write", f"is missing: s {what}")
    if checkpoint.durable is not None and not checkpoint.asynchronous:
        message = "is of asynchronous writes, others can be restarted from when they end: leave it out"
        report("checkpoint.durable", message)
    if checkpoint.best and (faults is None or not any(kind.stops for kind in faults.classes.values())):
        report("checkpoint.interval", "an optimal one needs faults that stop the job: say how long it is")
    if checkpoint.best and checkpoint.write == 0:
        report("checkpoint.interval", "an optimal one needs checkpoints that take time: say how long it is")
    if checkpoint.peer is not None:
        if checkpoint.best:
            report("checkpoint.interval", "an optimal one is of storage alone: beside `peer` say how long it is")
        elif checkpoint.peer.interval >= checkpoint.interval:
            late = format_time(checkpoint.interval)
            report(
                "checkpoint.peer.interval",
                f"is no shorter than that of the storage, {late}: memory is for more of them",
            )
        if checkpoint.peer.write >= checkpoint.peer.interval:
            report("checkpoint.peer.write", "is no shorter than the interval: the job would write more than it trains")
    if not checkpoint.best and checkpoint.write is not None:
        durable = checkpoint.durable if checkpoint.asynchronous else None
        check_times(checkpoint.interval, checkpoint.write, checkpoint.write if durable is None else durable, report)


def check_times(interval: float, write: float, durable: float, report: Callable[[str, str], None]) -> None:
    """What is known when the job is laid out: how long writes take, and what interval is best. All in s.

    durable: from a write's start until it can be restarted from.
    """
    if write >= interval:
        message = (
            f"{format_time(write)} is no shorter than the interval of {format_time(interval)}: the job would write more than"
            " it trains"
        )
        report("checkpoint.write", message)
    elif durable < write:
        message = f"{format_time(durable)}: the copy that blocks takes {format_time(write)} of it: say at least as much"
        report("checkpoint.durable", message)
    elif durable > interval + write:
        late = format_time(interval + write)
        report("checkpoint.durable", f"{format_time(durable)}: the next write, {late} later, would find it unfinished")
