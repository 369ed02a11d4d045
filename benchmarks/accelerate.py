"""Other libraries' flows before and after ``made_flows.accelerate``.

Sampling a MAF of 5 and of 10 layers, and scoring points from elsewhere under an IAF of Pyro's: the
slow directions. Flows of the same weights take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import made_flows as mf
from benchmarks.harness import (
    Contender,
    Settings,
    Timing,
    details,
    markdown_table,
    milliseconds,
    parse_settings,
    ratio,
    run_contenders,
    write_page,
)

AFTER = ", accelerated"
WIDTHS = {6: 128, 21: 256, 43: 512, 63: 512}
LAYERS = (5, 10)
SAMPLES = 10_000
SCORED = 1_000
QUICK_WIDTHS, QUICK_LAYERS, QUICK_SAMPLES = {3: 8, 5: 8}, (2,), 50

TEXT = f"""\
Networks have two hidden layers of H units. Values are milliseconds for {SAMPLES} samples, without
gradients; "times" is how many times as long the library takes without `accelerate`, median and
quartiles over neighbouring turns (one turn, where a call takes longer than it is given). Samples of
normflows come with their log-densities, which take one more pass of every network."""

SCORING_TEXT = f"""\
Log-densities of {SCORED} points that were not drawn from the flow: Pyro inverts its transforms."""

Sampler = Callable[[Any, int], Any]


# ---------------------------------------------------------------------- flows


def nflows_maf(features: int, width: int, layers: int) -> Any:
    from nflows.flows import MaskedAutoregressiveFlow

    return MaskedAutoregressiveFlow(
        features, width, layers, num_blocks_per_layer=1, use_residual_blocks=False
    )


def normflows_maf(features: int, width: int, layers: int) -> Any:
    import normflows as nf

    parts: list[Any] = []
    for _ in range(layers):
        # Its flows map noise to data: what is one pass in a MAF is the inverse here.
        affine = nf.flows.MaskedAffineAutoregressive(
            features, width, num_blocks=1, use_residual_blocks=False
        )
        parts += [nf.flows.Permute(features, mode="swap"), Inverted(affine)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), parts)


class Inverted(nn.Module):
    """A normflows layer the other way round."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: torch.Tensor) -> Any:
        return self.layer.inverse(z)

    def inverse(self, z: torch.Tensor) -> Any:
        return self.layer.forward(z)


def pyro_flow(features: int, width: int, layers: int, inverted: bool) -> Any:
    import pyro.distributions as dist
    from pyro.distributions.transforms import affine_autoregressive

    base = dist.Normal(torch.zeros(features), torch.ones(features)).to_event(1)
    parts = [affine_autoregressive(features, [width, width]) for _ in range(layers)]
    return dist.TransformedDistribution(base, [part.inv if inverted else part for part in parts])


def zuko_maf(features: int, width: int, layers: int) -> Any:
    import zuko

    return zuko.flows.MAF(features, transforms=layers, hidden_features=(width, width))


def _without_cache(flow: Any, call: Callable[[], Any]) -> Any:
    """Pyro keeps the last result of every transform, which a fresh one does not have."""
    flow.clear_cache()
    return call()


MAFS: dict[str, tuple[str, Callable[[int, int, int], Any], Sampler]] = {
    "nflows": ("nflows", nflows_maf, lambda flow, n: flow.sample(n)),
    "normflows": ("normflows", normflows_maf, lambda flow, n: flow.sample(n)),
    "Pyro": (
        "pyro",
        lambda *sizes: pyro_flow(*sizes, inverted=True),
        lambda flow, n: _without_cache(flow, lambda: flow.sample((n,))),
    ),
    "zuko": ("zuko", zuko_maf, lambda flow, n: flow().sample((n,))),
}


def no_grad(call: Callable[[], Any]) -> Callable[[], Any]:
    def without_gradients() -> Any:
        with torch.no_grad():
            return call()

    return without_gradients


def pair(name: str, make: Callable[[], Any], call: Callable[[Any], Any]) -> Iterator[Contender]:
    """A flow as it is, and one of the same weights accelerated."""
    flows = []
    for _ in range(2):  # made twice: a copy of an inverse of Pyro's has lost what it inverts
        torch.manual_seed(0)
        flows.append(make())
    flow, fast = flows[0], mf.accelerate(flows[1])
    yield Contender(name, no_grad(lambda: call(flow)))
    yield Contender(name + AFTER, no_grad(lambda: call(fast)))


def sampling(features: int, width: int, layers: int, samples: int) -> list[Contender]:
    contenders: list[Contender] = []
    for name, (package, make, sample) in MAFS.items():
        if find_spec(package):
            contenders += pair(
                name,
                lambda make=make: make(features, width, layers),
                lambda flow, sample=sample: sample(flow, samples),
            )
    return contenders


def scoring(features: int, width: int, layers: int, points: int) -> list[Contender]:
    if not find_spec("pyro"):
        return []
    x = torch.randn(points, features, generator=torch.Generator().manual_seed(0))

    def make() -> Any:
        return pyro_flow(features, width, layers, inverted=False)

    # A copy of the points, as Pyro recognises the very tensor that it has inverted before.
    return list(pair("Pyro", make, lambda flow: flow.log_prob(x.clone())))


# ---------------------------------------------------------------------- the page


def table(cases: dict[str, dict[str, Timing]]) -> str:
    names = [name for name in next(iter(cases.values())) if not name.endswith(AFTER)]
    headings = ["D, H, layers"]
    for name in names:
        headings += [name, name + AFTER, f"{name}, times"]
    rows = []
    for case, timings in cases.items():
        cells = [case]
        for name in names:
            before, after = timings[name], timings[name + AFTER]
            cells += [milliseconds(before.median), milliseconds(after.median)]
            cells.append(str(ratio(before, after)))
        rows.append(cells)
    return markdown_table(headings, rows)


COLOURS = {"nflows": "#b5452c", "normflows": "#6d4a8f", "Pyro": "#d9741a", "zuko": "#7a8f2a"}


def plot(
    path: Path, cases: dict[tuple[int, int], dict[str, Timing]], layers: Sequence[int]
) -> None:
    """Sampling times by the number of features: dashed before, solid after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(layers) + 1, 4), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for ax, count in zip(axes, layers, strict=True):
        here = {features: timings for (features, n), timings in cases.items() if n == count}
        for name, colour in COLOURS.items():
            for suffix, dashes in (("", "--"), (AFTER, "-")):
                line = {d: t[name + suffix].median for d, t in here.items() if name in t}
                label = name if suffix else None
                values = [1e3 * seconds for seconds in line.values()]
                ax.plot(list(line), values, dashes, color=colour, label=label, marker="o", ms=3.5)
        ax.set(xscale="log", yscale="log", xlabel="features D", title=f"{count} layers")
        ax.set_xticks(list(here), [str(d) for d in here], minor=False)
        ax.minorticks_off()
        ax.grid(color="#8a8f98", alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("milliseconds")
    axes[-1].legend(title="solid: accelerated\ndashed: before", frameon=False, fontsize=9)
    figure.savefig(path)


def measure(settings: Settings) -> list[str]:
    """The sections of the page."""
    widths = QUICK_WIDTHS if settings.quick else WIDTHS
    layers = QUICK_LAYERS if settings.quick else LAYERS
    samples, points = (QUICK_SAMPLES,) * 2 if settings.quick else (SAMPLES, SCORED)
    by_size: dict[tuple[int, int], dict[str, Timing]] = {}
    drawn: dict[str, dict[str, Timing]] = {}
    scored: dict[str, dict[str, Timing]] = {}
    for features, width in widths.items():
        for count in layers:
            case = f"{features}, {width}, {count}"
            contenders = sampling(features, width, count, samples)
            drawn[case] = run_contenders(contenders, settings, f"sampling, {case}")
            by_size[features, count] = drawn[case]
            contenders = scoring(features, width, count, points)
            if contenders:
                scored[case] = run_contenders(contenders, settings, f"scoring, {case}")
    settings.output.mkdir(parents=True, exist_ok=True)
    picture = "accelerate.png"
    plot(settings.output / picture, by_size, layers)
    sections = [TEXT, "## Sampling a MAF", table(drawn), f"![Sampling times]({picture})"]
    if scored:
        sections += ["## Scoring under an IAF", SCORING_TEXT, table(scored)]
    every = {f"sampling, {case}": timings for case, timings in drawn.items()}
    every |= {f"scoring, {case}": timings for case, timings in scored.items()}
    return [*sections, "## Spread", "Median (quartiles), repetitions.", details(every)]


def main() -> None:
    settings = parse_settings(__doc__)
    write_page("accelerate", "Flows of other libraries, accelerated", measure(settings), settings)


if __name__ == "__main__":
    main()
