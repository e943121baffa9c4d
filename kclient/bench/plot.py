"""Plots of latency by percentile, as HdrHistogram draws them: the rarer a call, the further to the right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import ceil, log10
from pathlib import Path
from typing import Final

import attrs
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from kclient.bench.recorder import Recorder

PALETTE: Final = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
"""Colours that the colour-blind can tell apart (Okabe and Ito)."""

PANEL_INCHES: Final = (7.6, 4.0)
"""Inches of one panel, with its labels."""

CHARACTERS_AN_INCH: Final = 15
"""Characters of the foot's small print in an inch of its line."""


@attrs.frozen
class Line:
    """The calls of one client; without a colour it gets the next of the palette."""

    name: str
    recorder: Recorder
    colour: str | None = None
    dash: str = "-"


@attrs.frozen
class Panel:
    """One pair of axes, for clients that do the same."""

    title: str
    lines: Sequence[Line]


def write_plot(path: str | Path, panels: Sequence[Panel], *, columns: int, foot: str) -> None:
    """Draw the panels, `columns` side by side, above the small print; raises OSError.

    The suffix of `path` is the format; `check_format` checks it.
    """
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw(axes, panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    width = int(PANEL_INCHES[0] * columns * CHARACTERS_AN_INCH)
    figure.supxlabel("\n".join(textwrap.wrap(foot, width)), fontsize=7, color="0.35", parse_math=False)
    figure.savefig(path)


def check_format(path: str | Path) -> None:
    """Raise ValueError, with the formats there are, if the suffix of `path` is none of them."""
    formats = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.lower().lstrip(".") not in formats:
        raise ValueError(f"a plot's file name must end in .{', .'.join(sorted(formats))}")


def draw(axes: Axes, panel: Panel) -> None:
    """Latency over percentile, both logarithmic: 90 %, 99 %, 99.9 % and so on are equally far apart."""
    rarest = 10.0
    for index, line in enumerate(panel.lines):
        curve = line.recorder.curve()
        rarest = max(rarest, curve[-1][0])
        axes.plot(
            [x for x, _ in curve],
            [microseconds for _, microseconds in curve],
            label=f"line {index}",  # one that begins with _ would not be in the legend
            color=line.colour or PALETTE[index % len(PALETTE)],
            linestyle=line.dash,
            linewidth=1.7,
            marker="o" if len(curve) == 1 else "",
        )
    # A name, of a file for example, may have dollar signs in it: matplotlib would read formulas between them.
    axes.set_title(panel.title, parse_math=False)
    axes.set(xlabel="percentile of the calls", ylabel="latency, us", xscale="log", yscale="log")
    axes.set_xlim(1, rarest * 1.1)
    axes.xaxis.set_major_locator(FixedLocator([1, 2, *(10**power for power in range(1, int(log10(rarest)) + 1))]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, position: percentile_label(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, position: f"{y:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    for text, line in zip(legend.get_texts(), panel.lines, strict=True):
        text.set_parse_math(False)
        text.set_text(line.name)


def percentile_label(inverse: float) -> str:
    """``99.9%`` for 1000, the 1 / (1 - p) of that percentile."""
    return f"{100 * (1 - 1 / inverse):.8g}%"
