"""The plots of a report as one SVG. Imported when there is something to draw: matplotlib takes a second to load."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.typing import RcKeyType

from tests.benchmarks.report import Plot, Report, Series

WIDTH, HEIGHT = 8.0, 4.0  # inches, of each plot
FEW_POINTS = 24
STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "longrun",  # ids that are the same each time
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}
# Okabe and Ito's palette: the colour-blind tell its colours apart too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LIMIT = {"color": "#555555", "linestyle": "--"}


def draw(report: Report) -> bytes:
    """The SVG, the same bytes for the same figures."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT * len(report.plots)), layout="constrained")
        figure.suptitle(report.title, x=0.01, horizontalalignment="left", fontweight="bold")
        for number, plot in enumerate(report.plots, 1):
            fill(figure.add_subplot(len(report.plots), 1, number), plot)
        picture = BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
        return picture.getvalue()


def fill(axes: Axes, plot: Plot) -> None:
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    colours = cycle(COLOURS)
    for series in plot.series:
        axes.plot(series.x, series.y, label=series.name, **look(series, colours))
    if plot.logarithmic_x:
        axes.set_xscale("log")
        write_out(axes.xaxis)
    if plot.logarithmic_y:
        axes.set_yscale("log")
        write_out(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    if len(plot.series) > 1:
        axes.legend()


def write_out(axis: Axis) -> None:
    """Label 1, 2, 5, 10, …, not the powers of ten as powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def look(series: Series, colours: Iterator[str]) -> Mapping[str, Any]:
    line = LIMIT if series.name == "limit" else {"color": next(colours)}
    return {**line, "linewidth": 1.8, "marker": "o" if len(series.x) <= FEW_POINTS else "", "markersize": 4}
