"""Density models of real data beside simpler ones, in about a minute: `make demo`.

Two data sets that come with scikit-learn: handwritten digits as binary pixels, and the
measurements of a medical table. Prints one table and draws one picture for each. With
MADE_FLOWS_QUICK=1 everything is trained for a moment only, to see that it runs.
"""

from __future__ import annotations

import time

import _demo_cells
import _demo_digits
import torch
from _demo_report import OUTPUT, QUICK, say, table


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    parts = [part.run(OUTPUT) for part in (_demo_digits, _demo_cells)]
    say("\n" + table(parts))
    if QUICK:
        say("MADE_FLOWS_QUICK is set: trained for a moment only, so the scores mean nothing.")
    findings = "; ".join(part.finding for part in parts)
    pictures = " and ".join(str(part.picture) for part in parts)
    say(f"demo: {findings} ({time.perf_counter() - start:.0f} s). Pictures: {pictures}")


if __name__ == "__main__":
    main()
