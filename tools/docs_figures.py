"""The pictures that no page's own code draws: their numbers come from the benchmarks' tables."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from tools.docs_run import picture

STYLES = {  # told apart by shape and lightness as well as by colour
    "Pyro": ("#d9741a", "^"),
    "nflows": ("#a03c6e", "s"),
    "zuko": ("#c9a227", "v"),
    "made_flows": ("#1f5a96", "o"),
    "dense MLP": ("#8a8f98", ""),
}
LABELS = {"dense MLP": "one pass of a dense network"}


def table(page: str, title: str) -> dict[str, list[str]]:
    """Returns the table of a section of a page, by column."""
    section = page.split(f"# {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| \n") for line in section.splitlines() if line.startswith("|")]
    header, _, *cells = [[cell.strip() for cell in re.split(r"\s*\|\s*", row)] for row in rows]
    return {name: [row[i] for row in cells] for i, name in enumerate(header)}


def sampling(docs: Path) -> bytes:
    """Draws what a sample takes by the number of features: of ours, and of the others."""
    columns = table((docs / "benchmarks/inverse.md").read_text("utf-8"), "Growth with features D")
    features = [int(cell) for cell in columns["features D"]]
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    ax = figure.add_subplot()
    for name, (colour, marker) in STYLES.items():
        points = [(D, float(t)) for D, t in zip(features, columns[name], strict=True) if t != "-"]
        x, y = zip(*points, strict=True)
        wide = 2.6 if name == "made_flows" else 1.5
        dashes = "--" if name == "dense MLP" else "-"
        label = LABELS.get(name, name)
        ax.plot(x, y, dashes, color=colour, marker=marker, lw=wide, ms=5, label=label)
    ax.set(xscale="log", yscale="log", xlabel="features", ylabel="milliseconds, 256 samples")
    ax.set_xticks(features, [str(D) for D in features])
    ax.minorticks_off()
    ax.grid(color="#8a8f98", alpha=0.25, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center right", fontsize=9)
    return picture(figure)


PICTURES = {"images/sampling.png": sampling}
