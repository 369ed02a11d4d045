"""Runs one command, then says in one last line what happened and how long it took.

    python tools/step.py [--junit FILE] [--note TEXT] NAME COMMAND [ARGUMENT ...]

The command keeps the terminal, so that its own progress stays visible. With --junit, the last line
also counts the tests of that pytest report. The exit status is the command's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def test_counts(report: Path) -> str:
    """Reads "120 passed, 1 failed, 2 skipped" from a JUnit report; leaves out zeros."""
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        for name in totals:
            totals[name] += int(suite.get(name, "0"))
    passed = totals["tests"] - totals["failures"] - totals["errors"] - totals["skipped"]
    counts = {
        "failed": totals["failures"],
        "errors": totals["errors"],
        "skipped": totals["skipped"],
    }
    return ", ".join([f"{passed} passed"] + [f"{n} {word}" for word, n in counts.items() if n])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--junit", type=Path, help="pytest report that the command writes")
    parser.add_argument("--note", default="", help="what to add to the last line of a success")
    parser.add_argument("name")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()

    if arguments.junit is not None:  # never count the tests of an earlier run
        arguments.junit.unlink(missing_ok=True)
    start = time.monotonic()
    try:
        status = subprocess.run(arguments.command, check=False).returncode
    except KeyboardInterrupt:
        status = 130
    seconds = time.monotonic() - start

    outcome = "done" if status == 0 else f"FAILED (exit status {status})"
    if arguments.junit is not None and arguments.junit.exists():
        counts = test_counts(arguments.junit)
        outcome = counts if status == 0 else f"{outcome}, {counts},"
    note = f": {arguments.note}" if arguments.note and status == 0 else ""
    print(f"{arguments.name}: {outcome} in {seconds:.0f} s{note}", flush=True)
    return status if status >= 0 else 128 - status  # a signal's number, as shells report it


if __name__ == "__main__":
    sys.exit(main())
