"""The table of CPU time as an SVG: one point per load and broker, on a logarithmic axis.

Run as `python -m compare.chart result.json chart.svg` by the Python of the environment that has
matplotlib; see `draw` in `__main__`.
"""

import itertools
import json
import sys

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

from compare import cells  # noqa: E402
from compare.summary import summaries  # noqa: E402

# Okabe and Ito's colours, which the colour-blind can tell apart, and shapes besides.
STYLES = [
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"),
    ("#e69f00", "v"), ("#56b4e9", "P"), ("#000000", "X"),
]


def draw(result):
    """One panel per QoS, one row per load; a point is hollow where a promise was broken."""
    table = [cell for cell in result["cells"] if cell["group"] == cells.TABLE]
    found = summaries(result)
    loads = list(dict.fromkeys(cell["load"] for cell in table))
    qualities = sorted({cell["qos"] for cell in table})
    pyplot.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "compare",
        "font.family": "sans-serif", "font.size": 10,
    })
    figure, panels = pyplot.subplots(
        1, len(qualities), sharex=True, sharey=True, squeeze=False,
        figsize=(2.2 + 3.3 * len(qualities), 1.6 + 0.4 * len(loads)), layout="constrained",
    )
    for panel, qos in zip(panels[0], qualities):
        # Where points meet, the first broker's is on top.
        for depth, ((colour, shape), broker) in enumerate(zip(itertools.cycle(STYLES), result["brokers"])):
            label = f"{broker['name']} {broker['version'].split(' ')[0]}".strip()
            for cell in table:
                runs = found.get((cell["name"], broker["name"]))
                if cell["qos"] != qos or runs is None or runs.cpu_us is None:
                    continue
                row = loads.index(cell["load"])
                line = (min(runs.cpu_us_all), max(runs.cpu_us_all))
                panel.plot(line, (row, row), color=colour, linewidth=2.5, alpha=0.4, zorder=9 - depth)
                broken = any(forbidden for _, _, forbidden in runs.faults(qos))
                panel.plot(
                    runs.cpu_us, row, shape, markersize=7, zorder=9 - depth,
                    color="white" if broken else colour, label=None if broken else label,
                    markeredgecolor=colour if broken else "white", markeredgewidth=0.8,
                )
        panel.set_xscale("log")
        panel.set_title(f"QoS {qos}", fontsize=11)
        panel.grid(axis="x", color="#dddddd", linewidth=0.8)
        panel.grid(axis="y", color="#f0f0f0", linewidth=6)
        panel.set_axisbelow(True)
        panel.tick_params(which="both", length=0)
        panel.spines[:].set_visible(False)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0][0].set_yticks(range(len(loads)), loads)
    panels[0][0].invert_yaxis()
    figure.supxlabel(
        "µs of CPU of the broker per delivered message; less is better; hollow: lost or out of order",
        fontsize=10,
    )
    named = {}
    for panel in panels[0]:
        named.update({text: mark for mark, text in zip(*panel.get_legend_handles_labels())})
    figure.legend(named.values(), named, loc="outside upper center", ncols=4, frameon=False)
    return figure


def main(source, target):
    """Reads the result, writes the chart."""
    with open(source, encoding="utf-8") as file:
        result = json.load(file)
    # Without a date, so that the same figures make the same file.
    draw(result).savefig(target, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
