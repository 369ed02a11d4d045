"""Builds wheel and sdist, installs them, and runs README's code with the wheel, not the checkout.

    python tools/check_packages.py

Each is installed into a folder of its own, which stands in front of the environment's packages; its
version has to be that of the changelog's and of CITATION.cff's newest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = dict.fromkeys(("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), str(ROOT / "constraints.txt"))
WHERE = "import made_flows; print(made_flows.__version__, made_flows.__file__)"


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT / "tools", text=True, capture_output=True,
        check=False, env={**os.environ, **PINS, **environment},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "build", ROOT, "--outdir", folder)
        for package in sorted(Path(folder).glob("made_flows-*")):
            target = Path(folder, package.suffix[1:])
            run("-m", "pip", "install", "--quiet", "--no-deps", "--target", target, package)
            found, file = run("-c", WHERE, PYTHONPATH=str(target)).split(maxsplit=1)
            if not file.startswith(str(target)):
                raise RuntimeError(f"Expected made_flows of {package.name}; got {file}")
            if not newest or not cited or not found == newest[1] == cited[1]:
                raise RuntimeError(f"Expected one version; got {found}, {newest}, {cited}")
            if package.suffix == ".whl":  # kernels would be compiled anew, as they lie elsewhere
                document = ROOT / "tools/run_documents.py", ROOT / "README.md"
                run(*document, PYTHONPATH=str(target), MADE_FLOWS_INVERSE="eager")
            print(f"{package.name}: ok", flush=True)


if __name__ == "__main__":
    main()
