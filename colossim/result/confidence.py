"""How far a prediction may be off, by the published runs that are most like it.

The calibration leaves, for each GPU, stack and precision that runs were published of, how far those runs were predicted off
while their configurations were left out of the fit (`python -m calibration.steps`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from colossim import catalog, yaml12
from colossim.scenario.plan import Plan
from colossim.scenario.schema import Scenario


@cache
def _bands() -> tuple[dict[str, Any], ...]:
    bands: tuple[dict[str, Any], ...] = yaml12.read_file(catalog.SCORES).value.get("bands", ())
    return bands


def error_band(scenario: Scenario, plan: Plan) -> dict[str, Any]:
    """within_pct: 90 % of the nearest published runs are predicted within it, None if there is none at all; runs: how many.

    like: what they have in common with this one.  beyond: how this one differs from all of them (GPU, stack, precision, or
    more GPUs than any): there it is an extrapolation, and the error may be larger.
    """
    job, gpu = scenario.job, scenario.cluster.nodes[0].type.gpu.name
    own = {"gpu": catalog.lineage("gpus", gpu), "software": catalog.lineage("software", job.software.name)}
    near, beyond = list(_bands()), []
    like = []
    for key, names, said in (
        ("gpu", own["gpu"], gpu),
        ("precision", (job.precision, *(("bf16", "fp16") if job.precision != "fp8" else ())), job.precision),
        ("software", own["software"], job.software.name),
    ):
        same = [band for band in near if _kin(band[key], names)]
        if same:
            near = same
            like.append(said)
        else:
            beyond.append(f"no published run of {said}")
    most = max((band["most_gpus"] for band in near), default=0)
    if plan.world > 2 * most and near:
        beyond.append(f"none of more than {most:,} GPUs")
    off = [error for band in near for error in band["off_pct"]]
    within = float(np.quantile(off, 0.9, method="higher")) if off else None
    return {"within_pct": within, "runs": len(off), "like": like, "beyond": beyond}


def _kin(published: list[str] | tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether a published entry and this one share a name or a base."""
    return bool(set(published) & set(names))


def said(band: dict[str, Any]) -> str:
    """The band as a sentence."""
    if band["within_pct"] is None:
        return "Error: no published run to compare with."
    text = f"Error: 90 % of {band['runs']} published runs ({', '.join(band['like']) or 'of any kind'}) are met within "
    text += f"{band['within_pct']:.0f} %"
    return text + (f"; beyond them: {', '.join(band['beyond'])}." if band["beyond"] else ".")
