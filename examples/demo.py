"""Density models of real data, a posterior, and trained flows made fast: `make demo`.

Handwritten digits as binary pixels, measurements of cells, and wines with values missing, all of
which come with scikit-learn, and the posterior of eight schools. Prints a table for each, and
writes pictures and a page. With MADE_FLOWS_QUICK=1 everything is trained for a moment only, to see
that it runs.
"""

from __future__ import annotations

import time


def main() -> None:
    start = time.perf_counter()
    print(
        "Digits are completed, a table is modelled beside nflows and zuko, whose flows are\n"
        "then made fast, another is filled in, a posterior is judged: about a minute.\n",
        flush=True,
    )
    # Imported here, because that takes seconds, and the line above is to be there first.
    import _demo_cells
    import _demo_digits
    import _demo_posterior
    import _demo_table
    import torch
    from _demo_report import LEGEND, OUTPUT, QUICK, page, say, wrapped

    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    parts = [_demo_digits.run(OUTPUT), _demo_cells.run(OUTPUT), _demo_table.run(OUTPUT)]
    if _demo_posterior.AVAILABLE:
        parts.append(_demo_posterior.run())
    for part in parts:
        say(f"\n{part.title}\n\n{part.text}\n\n{wrapped(f'{part.finding}.', '  -> ')}")
    say(f"\n{LEGEND}")
    if QUICK:
        say("MADE_FLOWS_QUICK is set: trained for a moment only, so the scores mean nothing.")
    target = OUTPUT / "index.html"
    target.write_text(page(parts), encoding="utf-8")
    say(f"\ndemo: {time.perf_counter() - start:.0f} s. Pictures and tables: open {target}")


if __name__ == "__main__":
    main()
