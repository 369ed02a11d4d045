"""A variational autoencoder in Pyro whose posterior is an inverse autoregressive flow.

Images are scikit-learn's handwritten digits as 64 binary pixels. Two autoencoders are trained that
differ in the posterior alone: a diagonal normal, and a flow of gated steps from it, as in Kingma et
al. 2016. The ELBO and the importance-weighted log-likelihood of held-out digits say what the flow
brings. ``--decoder made`` lets every pixel depend on those before it as well, so that less is left
for z to say; ``--quick`` (or MADE_FLOWS_QUICK=1) trains for a moment only, to see that it runs.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from _vae_models import VAE
from _vae_scores import elbo, estimate, log_likelihood, log_weights
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from made_flows.plotting import image_grid

OUTPUT = Path("example_output")
BATCH = 100


@dataclass
class Lengths:
    """How long to train, and how many draws to score with.

    Over a share of the steps, the warm-up, the divergence from the prior counts more and more. A
    decoder that can do without z needs more of it, or it leaves z unused.
    """

    epochs: int
    warm_up: float
    draws: int = 1000


FULL = {"bernoulli": Lengths(200, warm_up=0.2), "made": Lengths(150, warm_up=0.6)}
QUICK = Lengths(epochs=3, warm_up=0.2, draws=50)


@dataclass
class Result:
    """One autoencoder: scores of every held-out image."""

    vae: VAE
    elbo: Tensor
    log_likelihood: Tensor
    seconds: float


def digits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 64) of zeros and ones: to train, to choose an epoch, held out."""
    images = torch.from_numpy(load_digits().data >= 8).float()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    return images[600:], images[400:600], images[:400]


def train(vae: VAE, x: Tensor, validation: Tensor, lengths: Lengths, name: str) -> None:
    """Maximise the ELBO; the weights kept are those of the best epoch on the validation images."""
    loss = Trace_ELBO()
    total = lengths.epochs * (len(x) // BATCH)
    warm = max(1, round(lengths.warm_up * total))
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=total, pct_start=0.1
    )
    best, kept = -float("inf"), copy.deepcopy(vae.state_dict())
    step = 0
    with tqdm(total=total, desc=f"{name} posterior", unit="step") as bar:
        for epoch in range(lengths.epochs):
            vae.train()
            for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
                warmth = min(1.0, (step + 1) / warm)
                optimizer.zero_grad()
                objective = loss.differentiable_loss(vae.model, vae.guide, x[rows], warmth) / BATCH
                objective.backward()
                torch.nn.utils.clip_grad_norm_(vae.parameters(), 10.0)
                optimizer.step()
                schedule.step()
                step += 1
                bar.update()
            if warmth == 1.0 and (epoch % 5 == 4 or epoch == lengths.epochs - 1):
                vae.eval()
                score = float(elbo(log_weights(vae, validation, 50)).mean())
                bar.set_postfix(validation=f"{score:.2f}")
                if score > best:
                    best, kept = score, copy.deepcopy(vae.state_dict())
    vae.load_state_dict(kept)
    vae.eval()


def run(posterior: str, decoder: str, lengths: Lengths) -> Result:
    """Train one autoencoder and score the held-out images."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x, validation, test = digits()
    start = time.perf_counter()
    vae = VAE(posterior, decoder)
    train(vae, x, validation, lengths, posterior)
    seconds = time.perf_counter() - start
    weights = log_weights(vae, test, lengths.draws, progress="held-out digits")
    return Result(vae, elbo(weights), log_likelihood(weights), seconds)


@torch.no_grad()
def draw(results: dict[str, Result], path: Path, columns: int = 16) -> None:
    """Held-out digits, what each autoencoder makes of them, and digits that it draws."""
    torch.manual_seed(1)
    test = digits()[2][:columns]
    blocks = {"held-out digits": test}
    for name, result in results.items():
        vae: Any = result.vae
        blocks[f"{name}: from z of the digit"] = vae.decoder(vae.encoder(test).sample()).sample()
        blocks[f"{name}: drawn"] = vae.decoder(vae.prior().sample((columns,))).sample()
    figure = image_grid(
        torch.cat(list(blocks.values())), (8, 8), columns=columns, titles=list(blocks)
    )
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--decoder", choices=("bernoulli", "made"), default="bernoulli")
    parser.add_argument("--quick", action="store_true", help="train for a moment only")
    arguments = parser.parse_args()
    quick = arguments.quick or bool(os.environ.get("MADE_FLOWS_QUICK"))
    lengths = QUICK if quick else FULL[arguments.decoder]

    start = time.perf_counter()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    names = ("diagonal", "IAF")
    results = {name: run(name, arguments.decoder, lengths) for name in names}

    print(f"\n{'posterior':12}{'ELBO':>16}{'log p(x)':>16}{'training':>12}")
    for name, result in results.items():
        scores = f"{estimate(result.elbo)!s:>16}{estimate(result.log_likelihood)!s:>16}"
        print(f"{name:12}{scores}{result.seconds:10.0f} s")
    diagonal, flow = (results[name] for name in names)
    bound = estimate(flow.elbo - diagonal.elbo)
    likelihood = estimate(flow.log_likelihood - diagonal.log_likelihood)
    print(f"{'difference':12}{bound.signed():>16}{likelihood.signed():>16}")
    print(
        f"(nats per digit on {len(flow.elbo)} held-out digits, ± standard error; the difference is "
        f"of the same digits;\n log p(x) from {lengths.draws} importance-weighted draws; "
        f"decoder: {arguments.decoder})"
    )
    picture = OUTPUT / "pyro_vae_iaf.png"
    draw(results, picture)
    if quick:
        found = "trained for a moment only, so that the scores mean nothing,"
    else:
        found = (
            f"with the IAF posterior the ELBO changes by {bound.signed()} nats, log p(x) by "
            f"{likelihood.signed()},"
        )
    print(f"pyro_vae_iaf: {found} in {time.perf_counter() - start:.0f} s. Picture: {picture}")


if __name__ == "__main__":
    main()
