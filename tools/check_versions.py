"""Runs a part of the tests with the lowest versions that pyproject.toml allows, or the newest.

    python -m tools.check_versions lowest|newest [FOLDER]

An environment is made in the folder, `.venv-lowest` or `.venv-newest`, with torch as it is pinned,
by Python 3.11 or newer. Warnings are no errors here, since other versions warn of other things.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).parent.parent
EXTRAS = ["cli", "fast", "nflows", "plot", "pyro", "sklearn"]
BESIDE = ["hypothesis", "normflows", "pandas", "polars", "pytest", "zuko"]
TESTS = [
    "cli", "interop/test_foreign_layers.py", "nflows", "plotting", "pyro/test_dropin.py",
    "serialization", "sklearn", "tables/test_bad_input.py", "training/test_fit.py", "univariate",
]  # fmt: skip


def requirements(lowest: bool) -> list[str]:
    """Return what to install, at the lowest version or without one; torch as it is pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    given = [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    beside = {each for extra in ("dev", "peers") for each in extras[extra]}
    given += [each for each in sorted(beside) if re.split(r"[>\[]", each)[0] in BESIDE]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    [torch] = [pin for pin in pins if pin.startswith("torch==")]
    version = r"==\1" if lowest else ""
    others = [each for each in given if not each.startswith("torch>")]
    return [torch, *(re.sub(">=(.*)", version, each) for each in others)]


def main() -> int:
    which = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else f".venv-{which}")
    python = str(folder / "bin" / "python")
    constraints = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")  # of the Makefile
    environment = {k: v for k, v in os.environ.items() if k not in constraints}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CI": "true"}
    environment["PYTHONPATH"] = str(ROOT)
    if not Path(python).exists():
        venv.create(folder, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*install, *requirements(which == "lowest")], env=environment, check=True)
    subprocess.run([python, "-m", "pip", "list"], check=True)
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-W", "default"]
    command = [python, "-m", "pytest", *options, *(f"tests/{name}" for name in TESTS)]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
