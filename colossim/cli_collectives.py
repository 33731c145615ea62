"""The command `collectives`, and what `validate --collectives` does: words only."""

from __future__ import annotations

import json
from pathlib import Path

import click

from colossim.words import JSON, PLOT, SET, console, picture


@click.command()
@click.argument("scenario")
@SET
@click.option("--case", metavar="NAME", help="One of the scenario's cases.")
@click.option(
    "--operation",
    "operations",
    metavar="NAMES",
    help="Some of all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send_receive, with commas between.",
)
@click.option(
    "--group",
    default="all",
    metavar="GROUP",
    help="all, node, rail, pod, gpus:1024 (the first ones), or the job's tensor, context, expert, expert_tensor, data, "
    "expert_data, pipeline, embedding; node:5 is another one than the first.",
)
@click.option("--from", "first", default="8", metavar="SIZE", help="The first size, 8 B if absent; then it doubles.")
@click.option("--to", "last", default="16GiB", metavar="SIZE", help="The last size, 16 GiB if absent.")
@click.option(
    "--algorithm",
    type=click.Choice(("auto", "ring", "tree", "nvls", "collnet", "pat", "hierarchical")),
    help="Forced where it can run; auto is NCCL's choice. The job's own if absent.",
)
@click.option("--protocol", type=click.Choice(("auto", "ll", "ll128", "simple")), help="The same of the protocol.")
@click.option("--type", "kind", default="float", metavar="TYPE", help="Of the elements: float, half, bfloat16, ...")
@JSON
@PLOT
@click.option("--against", metavar="SCENARIO", help="The same on another cluster, beside it.")
def collectives(
    scenario: str,
    changes: tuple[str, ...],
    case: str | None,
    operations: str | None,
    group: str,
    first: str,
    last: str,
    algorithm: str | None,
    protocol: str | None,
    kind: str,
    as_json: bool,
    plot: Path | None,
    against: str | None,
) -> None:
    """Times collectives on the cluster of SCENARIO, as nccl-tests would; --set changes this cluster only."""
    from colossim.benchmark_table import tabulate, time_ratios
    from colossim.options import doubling, known_type, parse_operations
    from colossim.result.benchmark import lines
    from colossim.scenario.reader import load_scenario

    wanted = parse_operations(operations) if operations is not None else ()
    sizes, kind = doubling(first, last), known_type(kind)
    loaded = [load_scenario(scenario, set=changes, case=case)]
    loaded += [load_scenario(against)] if against is not None else []
    tables = [
        tabulate(each, wanted, group, sizes, type=kind, algorithm=algorithm, protocol=protocol) for each in loaded
    ]
    other = tables[1] if against is not None else None
    ratios = time_ratios(tables[0], other) if other is not None else []
    if plot is not None:
        from colossim.plot import collectives as draw

        curves = {
            f"{t.scenario}{' with --set' if i == 0 and changes else ''}, {t.group}: {t.ranks:,} GPUs": t.rows
            for i, t in enumerate(tables)
        }
        picture(draw(curves), plot)
    if as_json:
        beside = {"against": other.to_dict(), "time_ratios": ratios} if other is not None else {}
        click.echo(json.dumps({**tables[0].to_dict(), **beside}, indent=2, allow_nan=False))
    else:
        click.echo("\n".join(lines(tables[0], other, ratios)))


def validate_collectives(as_json: bool, plot: Path | None) -> None:
    """Prints (and draws) the scoreboard of measured collectives."""
    from colossim.measured import points, report
    from colossim.result.listing import show_collectives

    found = report()
    if plot is not None:
        from colossim.plot import predicted

        picture(predicted(points()), plot)
    if as_json:
        click.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        show_collectives(found, console())
