"""Plots for notebooks and for `--out`. Each takes a result (or what it draws) and `ax=None`, and returns the Axes.

matplotlib is imported when a plot is drawn, through its object interface: no global state, no display.
"""

from __future__ import annotations

from colossim.plot.breakdown import breakdown
from colossim.plot.campaign import goodput, interval, lost_time
from colossim.plot.canvas import save
from colossim.plot.collectives import collectives
from colossim.plot.growth import growth
from colossim.plot.pipeline import pipeline_fill
from colossim.plot.power import power, power_over_time
from colossim.plot.published import published, published_memory
from colossim.plot.scoreboard import errors, predicted
from colossim.plot.throughput import link_throughput, throughput, tokens
from colossim.plot.timeline import timeline
from colossim.plot.topology import topology

__all__ = [
    "breakdown",
    "collectives",
    "errors",
    "goodput",
    "growth",
    "interval",
    "link_throughput",
    "lost_time",
    "pipeline_fill",
    "power",
    "power_over_time",
    "predicted",
    "published",
    "published_memory",
    "save",
    "throughput",
    "timeline",
    "tokens",
    "topology",
]
