"""What the plots share: figures, colours that read in greyscale, and files."""

from __future__ import annotations

import math
import warnings
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour and hatch of each category, dark to light in the order of use, so that greyscale keeps them apart.
STYLE: dict[str, tuple[str, str]] = {
    "compute": ("#1b4f72", ""),
    "tensor_comm": ("#c0561b", ""),
    "context_comm": ("#d98032", "//"),
    "expert_comm": ("#e59c4b", ""),
    "pipeline_comm": ("#efb873", "\\\\"),
    "data_comm": ("#f5cf9a", "xx"),
    "optimizer": ("#5a8f5a", ".."),
    "pipeline_bubble": ("#ededed", ""),
    "straggler": ("#d4d4d4", "//"),
    "other": ("#a8b8c4", ""),
}


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of their own, in inches."""
    return new_figure(width, height).add_subplot()


def new_figure(width: float, height: float) -> Figure:
    """A figure that draws into memory, whatever backend is in use."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def title(ax: Axes, words: str) -> None:
    """The title, as written: a `$` in a scenario's name begins no formula."""
    ax.set_title(words, loc="left", fontsize=10, parse_math=False)


def plain(ax: Axes) -> None:
    """Only the spines that carry a scale."""
    ax.spines[["top", "right"]].set_visible(False)


def size_ticks(ax: Axes) -> None:
    """Sizes in powers of 1024, every fourth power of two a tick."""
    low, high = (int(math.log2(max(1.0, edge))) for edge in ax.get_xlim())
    ticks = [power for power in range(low, high + 2) if power % 4 == 0 or high - low < 8]
    names = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    limits = ax.get_xlim()
    ax.set_xticks([2.0**power for power in ticks], [f"{2 ** (p % 10)} {names[p // 10]}" for p in ticks], fontsize=9)
    ax.set_xticks([], minor=True)
    ax.set_xlim(limits)


def save(ax: Axes, file: IO[bytes] | str) -> None:
    """Writes the figure of these Axes as PNG."""
    figure: Any = ax.get_figure(root=True)
    with warnings.catch_warnings():
        # A name may be in a script that the font lacks: boxes in a title are no reason to talk.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="png", dpi=130)
