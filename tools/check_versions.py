"""Runs the tests that tell versions apart, with the package as it is installed from its sdist.

    python -m tools.check_versions lowest|pinned|newest [FOLDER [TEST ...]]

`lowest` takes the lowest versions that pyproject.toml allows, `newest` what pip finds, `pinned`
what constraints.txt has; torch is as it is pinned in all three, Python the one that runs this. The
environment is made in the folder, `.venv-lowest` and so on. Nothing of the checkout is imported:
tests come from the sdist, whose package is taken out of it once it is installed.

Versions show where the library touches what it did not write: plug-ins, other libraries' layers,
frames, pictures, the command, files, and kernels, which llvmlite translates. What is computed in
torch alone is left to `make test`; of it, the main table of the inverse stands for the kernels.
Warnings are no errors here, since other versions warn of other things.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parent.parent
EXTRAS = ["cli", "fast", "nflows", "plot", "pyro", "sbi", "sklearn"]
BESIDE = ["build", "hypothesis", "normflows", "pandas", "polars", "pytest", "zuko"]
TESTS = [
    "cli", "interop/test_foreign_layers.py", "interop/test_samplers.py", "inverse/test_d_pass.py",
    "inverse/test_translation.py", "nflows", "plotting", "pyro/test_dropin.py", "sbi",
    "serialization/test_changes.py", "serialization/test_files.py", "sklearn",
    "tables/test_frames.py", "tables/test_model.py", "training/test_data.py", "univariate",
]  # fmt: skip


def requirements(which: str) -> list[str]:
    """Return what to install: at the lowest version, or without one; torch as it is pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    given = [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]
    beside = {each for extra in ("dev", "peers") for each in extras[extra]}
    given += [each for each in sorted(beside) if re.split(r"[>\[]", each)[0] in BESIDE]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    [torch] = [pin for pin in pins if pin.startswith("torch==")]
    version = r"==\1" if which == "lowest" else ""
    others = [each for each in given if not each.startswith("torch>")]
    return [torch, *(re.sub(">=(.*)", version, each) for each in others)]


def main() -> int:
    which = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else f".venv-{which}").absolute()
    python = str(folder / "bin" / "python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CI": "true"}
    for variable in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH"):
        environment.pop(variable, None)
    if which == "pinned":
        environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    if not Path(python).exists():
        venv.create(folder, with_pip=True)

    def run(*command: str | Path, **options: Path) -> None:
        subprocess.run([python, *map(str, command)], env=environment, check=True, **options)

    install = ["-m", "pip", "install", "--quiet", "--upgrade"]
    run(*install, *requirements(which))
    with tempfile.TemporaryDirectory() as made:
        run("-m", "build", "--sdist", ROOT, "--outdir", made)
        [sdist] = Path(made).glob("*.tar.gz")
        run(*install, "--no-deps", "--force-reinstall", sdist)
        run("-m", "pip", "list")
        with tarfile.open(sdist) as archive:
            archive.extractall(made, filter="data")
        home = Path(made, sdist.name.removesuffix(".tar.gz"))
        shutil.rmtree(home / "made_flows")
        options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-W", "default"]
        tests = [f"tests/{name}" for name in sys.argv[3:] or TESTS]
        command = [python, "-m", "pytest", *options, "--durations=5", *tests]
        return subprocess.run(command, env=environment, cwd=home, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
