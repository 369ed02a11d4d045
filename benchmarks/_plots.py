"""How times grow, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["growth_plot"]

STYLES = {
    "dense MLP": ("#8a8f98", "--"),
    "made_flows": ("#1f5a96", "-"),
    "made_flows (eager)": ("#6fa3d6", "-"),
    "made_flows (CUDA graph)": ("#1f5a96", "-"),
    "Pyro": ("#d9741a", "-"),
    "nflows": ("#b5452c", "-"),
    "zuko": ("#7a8f2a", "-"),
}


def growth_plot(
    path: Path, title: str, axis: str, seconds: Mapping[str, Mapping[int, float]]
) -> None:
    """Seconds of every contender by size, on logarithmic axes, each line named at its end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    ax = figure.add_subplot()
    ends: list[tuple[float, int, str, str]] = []
    for name, line in seconds.items():
        if not line:
            continue
        colour, dashes = STYLES.get(name, ("black", ":"))
        sizes, times = list(line), [1e3 * time for time in line.values()]
        ax.plot(sizes, times, dashes, color=colour, lw=1.8, marker="o", ms=3.5)
        ends.append((times[-1], sizes[-1], name, colour))
    ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="milliseconds")
    ax.set_title(title, fontsize=10, loc="left")
    every = sorted({size for line in seconds.values() for size in line})
    ax.set_xticks(every, [str(size) for size in every], minor=False)
    ax.minorticks_off()
    ax.grid(color="#8a8f98", alpha=0.25, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    for (height, size, name, colour), place in zip(ends, _apart(ends, ax.get_ylim()), strict=True):
        ax.annotate(
            name, (size, height), (8, place), textcoords="offset points",
            color=colour, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip
    figure.savefig(path)


def _apart(
    ends: Sequence[tuple[float, int, str, str]], limits: tuple[float, float], gap: float = 11.0
) -> list[float]:
    """Vertical offsets, in points, that keep names at the same place from covering one another."""
    import math

    height = 240.0  # of the axes, in points, about
    scale = height / math.log(limits[1] / limits[0])
    wanted = [scale * math.log(end[0] / limits[0]) for end in ends]
    offsets = [0.0] * len(ends)
    for size in {end[1] for end in ends}:
        here = sorted((i for i, end in enumerate(ends) if end[1] == size), key=wanted.__getitem__)
        last = -math.inf
        for i in here:
            place = max(wanted[i], last + gap)
            offsets[i], last = place - wanted[i], place
    return offsets
