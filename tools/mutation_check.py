"""Breaks one line of the library at a time, and shows which test notices.

    python tools/mutation_check.py [--list] [NAME ...]

A mutant is a line of masks, of packing, of a kernel, of a scale rule or of a stamp, changed in a
temporary copy of the tree; its tests are run there until one fails. All mutants of the list are
to be noticed: one that is not is a hole in the tests. A mutant whose line is no longer in the
source, or is there twice, is an error: whoever changes the line changes the mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
QUICKLY = """
# Which test fails is all that counts here, not the smallest example.
hypothesis.settings.register_profile(
    "mutants", deadline=None, derandomize=True, max_examples=60,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("mutants")
"""
COPIED = ("made_flows", "tests", "examples", "benchmarks", "tools", "docs")


class Mutant(NamedTuple):
    """One line broken: its name, the file, the old and the new text, and the tests to run."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MASKS = "tests/nn/test_masks.py tests/nn/test_made.py"
SEQUENTIAL = "tests/inverse/test_sequential.py"
INVERSE = f"{SEQUENTIAL}::test_values_of_random_architectures {SEQUENTIAL}::test_every_option"
GRADIENT = f"{SEQUENTIAL}::test_gradients_of_random_architectures {SEQUENTIAL}::test_gradcheck"
TRAINED = "tests/inverse/test_parallel.py"
ROWS = f"{SEQUENTIAL}::test_any_number_of_rows"
FRESH = "tests/inverse/test_freshness.py"
KERNELS = "tests/inverse/gpu/test_kernels.py"
GRAPHS = "tests/inverse/gpu/test_graphs.py"
CALLS = "tests/inverse/gpu/test_calls.py"
NOT_FINITE = "tests/models/test_not_finite.py"

MUTANTS = [
    # --- masks
    Mutant(
        "an input of its own degree",
        "made_flows/nn/masks.py",
        "masks = [degrees[0][:, None] > input_ranks]",
        "masks = [degrees[0][:, None] >= input_ranks]",
        MASKS,
    ),
    Mutant(
        "units of equal degree apart",
        "made_flows/nn/masks.py",
        "masks += [after[:, None] >= before for",
        "masks += [after[:, None] > before for",
        MASKS,
    ),
    Mutant(
        "outputs that read too far",
        "made_flows/nn/masks.py",
        "return [*masks, output_ranks[:, None] >= degrees[-1]]",
        "return [*masks, output_ranks[:, None] >= degrees[-1] - 1]",
        MASKS,
    ),
    Mutant(
        "direct connections to itself",
        "made_flows/nn/connectivity.py",
        "direct=(outputs[:, None] > inputs)",
        "direct=(outputs[:, None] >= inputs)",
        MASKS,
    ),
    Mutant(
        "a forward pass without its mask",
        "made_flows/nn/linear.py",
        "self.weight * (self.factors() if mask is None else mask)",
        "self.weight * (1 if mask is None else mask)",
        MASKS,
    ),
    # --- the symbolic and the numeric phase
    Mutant(
        "a degree too low",
        "made_flows/inverse/symbolic.py",
        "before = of_column + 1",
        "before = of_column",
        INVERSE,
    ),
    Mutant(
        "weights that are not sorted",
        "made_flows/inverse/eager.py",
        "return masked.index_select(0, units).index_select(1, inputs)",
        "return masked.index_select(0, units)",
        INVERSE,
    ),
    Mutant(
        "weights without their mask",
        "made_flows/inverse/eager.py",
        "masked = weight * layer.mask.to(weight.dtype)",
        "masked = weight",
        INVERSE,
    ),
    Mutant(
        "masks on a device that are not proved",
        "made_flows/inverse/symbolic.py",
        "changed = [(a != b).any()",
        "changed = [(a != a).any()",
        GRAPHS,
    ),
    # --- packing
    Mutant(
        "a block in another's place",
        "made_flows/inverse/compiled/packing.py",
        "parts.append((int(places[p]), block.shape[1], block.reshape(-1)))",
        "parts.append((int(places[0]), block.shape[1], block.reshape(-1)))",
        INVERSE,
    ),
    Mutant(
        "a bias left out",
        "made_flows/inverse/compiled/packing.py",
        "self.vectors.append(at + units if known else np.full(len(units), self.zero))",
        "self.vectors.append(np.full(len(units), self.zero))",
        INVERSE,
    ),
    Mutant(
        "another unit's weights on the way back",
        "made_flows/inverse/compiled/adjoint.py",
        "place, source = block + own[0] * (u1 - u0) + first - u0, units",
        "place, source = block + own[0] * (u1 - u0), units",
        GRADIENT,
    ),
    # --- kernels
    Mutant(
        "a last tile as wide as the others for the gradients of weights",
        "made_flows/inverse/compiled/weights.py",
        "some, wide, rows = 1, recorded.last, recorded.rows",
        "some, wide, rows = 1, lanes, recorded.rows",
        f"{TRAINED}::test_gradients_of_many_units_and_shared_contexts",
    ),
    Mutant(
        "gradients of a weight that nobody writes",
        "made_flows/inverse/compiled/gradients.py",
        "if len(units) == height and all(",
        "if all(",
        f"{TRAINED}::test_gradients_where_nothing_reads_a_unit_or_a_unit_nothing",
    ),
    Mutant(
        "gradients of inputs in another order than weights have them",
        "made_flows/inverse/compiled/gradients.py",
        "(inputs[:read] == np.arange(read)).all()",
        "True",
        f"{TRAINED}::test_gradients_of_random_architectures",
    ),
    Mutant(
        "activations that are turned by another width than they are read",
        "made_flows/inverse/compiled/weights.py",
        "turned[j * here + i] = before[i * lanes + j]",
        "turned[j * _INPUTS * vector + i] = before[i * lanes + j]",
        f"{TRAINED}::test_gradients_of_many_units_and_shared_contexts",
    ),
    Mutant(
        "a panel that forgets its own units",
        "made_flows/inverse/compiled/solve.py",
        "multiply(tile, place, source, blocks, block, u1 - u0, read - done, v1 - v0)",
        "multiply(tile, place, source, blocks, block, u1 - u0, read - done - 1, v1 - v0)",
        INVERSE,
    ),
    Mutant(
        "a residual that is not added",
        "made_flows/inverse/compiled/units.py",
        "own[j] += earlier[j]",
        "own[j] += 0 * earlier[j]",
        INVERSE,
    ),
    Mutant(
        "rows past the last one",
        "made_flows/inverse/compiled/units.py",
        "line[j] = rows[min(row + j, count - 1), column]",
        "line[j] = rows[min(row + j + 1, count - 1), column]",
        ROWS,
    ),
    Mutant(
        "a delta without its slope",
        "made_flows/inverse/compiled/adjoint.py",
        "delta[j] *= slopes[j]",
        "delta[j] *= 1",
        GRADIENT,
    ),
    Mutant(
        "a slope of another activation",
        "made_flows/inverse/compiled/activations.py",
        "return like(z, 1.0) - t * t",
        "return like(z, 1.0) - t",
        GRADIENT,
    ),
    Mutant(
        "an affine step that adds twice",
        "made_flows/inverse/compiled/steps/affine.py",
        "value[j] = shift[j] + s[j] * u[j]",
        "value[j] = shift[j] + shift[j] + s[j] * u[j]",
        INVERSE,
    ),
    Mutant(
        "a binary step upside down",
        "made_flows/inverse/compiled/steps/bernoulli.py",
        "drawn = one if u[j] < probability else zero",
        "drawn = zero if u[j] < probability else one",
        INVERSE,
    ),
    Mutant(
        "a category drawn by no numbers",
        "made_flows/inverse/compiled/steps/categorical.py",
        "value[j] = value[j] if threshold[j] == threshold[j] else -one",
        "value[j] = value[j]",
        NOT_FINITE,
    ),
    Mutant(
        "a category drawn by no numbers, in torch",
        "made_flows/univariate/heads.py",
        "return torch.where(total.isnan().squeeze(-1), -1, (place >= cumulative).sum(dim=-1))",
        "return (place >= cumulative).sum(dim=-1)",
        NOT_FINITE,
    ),
    Mutant(
        "a weight that is not finite and has no effect",
        "made_flows/nn/spec.py",
        "return torch.stack(sums).mul(0).sum()",
        "return torch.zeros(())",
        NOT_FINITE,
    ),
    Mutant(
        "a gradient without its hooks",
        "made_flows/inverse/higher_order.py",
        "if wants_gradient and has_gradient_hooks(parts):",
        "if False and has_gradient_hooks(parts):",
        "tests/inverse/test_d_pass.py",
    ),
    Mutant(
        "hooks on all modules unseen",
        "made_flows/nn/validation.py",
        "        return not (\n            has_global_hooks()",
        "        return not (\n            False",
        "tests/inverse/test_d_pass.py",
    ),
    Mutant(
        "masks changed by hand unseen",
        "made_flows/nn/reordering.py",
        "same = torch.equal(mask, cast(Tensor, right).to(mask))",
        "same = True",
        "tests/nn/test_made.py",
    ),
    Mutant(
        "a state dict's version unread",
        "made_flows/models/base.py",
        'if local_metadata.get("version") == 1 and',
        'if local_metadata.get("version") == 0 and',
        "tests/models/test_constructors.py",
    ),
    Mutant(
        "second derivatives under torch.func of nothing",
        "made_flows/inverse/ops.py",
        "return of_gradient, *(None,) * (5 + ctx.total), *rest",
        "return None, *(None,) * (5 + ctx.total), *rest",
        "tests/interop/test_nothing_taken_away.py::test_what_worked_before_works_after",
    ),
    Mutant(
        "averages of what is not finite",
        "made_flows/transforms/normalization.py",
        '        check_finite(x, "x")\n        variance, mean',
        "        variance, mean",
        "tests/transforms/test_normalization.py",
    ),
    Mutant(
        "an eager residual that is not added",
        "made_flows/inverse/eager.py",
        "z += self.z[self.structure.adds_to[layer]][:, stream[units]]",
        "z += 0 * self.z[self.numeric.structure.adds_to[layer]][:, stream[units]]",
        INVERSE,
    ),
    # --- scale rules
    Mutant(
        "a bound that is not there",
        "made_flows/univariate/scales.py",
        "return self.bound * torch.tanh(a / self.bound)",
        "return self.bound * (a / self.bound)",
        "tests/univariate",
    ),
    Mutant(
        "a floor left out",
        "made_flows/univariate/scales.py",
        "return torch.log(F.softplus(a) + self.floor)",
        "return torch.log(F.softplus(a))",
        "tests/univariate",
    ),
    Mutant(
        "a compiled rule of another bound",
        "made_flows/inverse/compiled/elementwise.py",
        "s[i] = a0 * tanh(s[i] / a0)",
        "s[i] = a0 * tanh(s[i])",
        INVERSE,
    ),
    # --- stamps
    Mutant(
        "values that are not compared",
        "made_flows/_cache.py",
        "if self.reading.finish() != self.hashes:",
        "if False:",
        FRESH,
    ),
    Mutant(
        "weights that are believed to the end",
        "made_flows/inverse/plans.py",
        "if proof is not None and not proof.holds():",
        "if False:",
        FRESH,
    ),
    Mutant(
        "masks that are not part of the stamp",
        "made_flows/inverse/symbolic.py",
        "masks = [tensors[place] for place in structure.mask_places]",
        "masks = [tensors[place] for place in structure.mask_places[:1]]",
        FRESH,
    ),
    Mutant(
        "an entry that is believed",
        "made_flows/_cache.py",
        "if entry is not None and entry.stamp.holds(tensors):",
        "if entry is not None:",
        FRESH,
    ),
    Mutant(
        "facts that are not compared",
        "made_flows/_cache.py",
        "or self.facts != facts:",
        "or False:",
        "tests/test_cache.py",
    ),
    # --- kernels for GPUs
    Mutant(
        "a step of two threads without a barrier",
        "made_flows/inverse/gpu/tile.py",
        "tl.debug_barrier()  # the place of a sum may become that of its activation",
        "pass",
        f"{KERNELS}::test_barriers_stand_between_what_threads_share",
    ),
    Mutant(
        "a plan that is not proved",
        "made_flows/inverse/gpu/pack.py",
        "wrong += tl.sum((present & (known == 0) & both)",
        "wrong += tl.sum((present & (known == 0) & (k < 0))",
        f"{KERNELS}::test_a_plan_that_masks_outgrew_unseen_gives_no_number",
    ),
    Mutant(
        "a panel that reads its own inputs twice",
        "made_flows/inverse/gpu/solve.py",
        "                        done = tl.load(starts + (index - 1) * width + r0)",
        "                        done = tl.load(starts + (index - 1) * width)",
        f"{KERNELS}::test_any_panels",
    ),
    Mutant(
        "a recording that is replayed for weights that moved",
        "made_flows/inverse/gpu/graphs.py",
        "    key = (*key, precision, places, shapes)",
        "    key = (*key, precision, shapes)",
        GRAPHS,
    ),
    Mutant(
        "a recording that reads what the first call was given",
        "made_flows/inverse/gpu/graphs.py",
        "                own.copy_(other)",
        "                pass",
        GRAPHS,
    ),
    Mutant(
        "a result that the next replay overwrites",
        "made_flows/inverse/gpu/graphs.py",
        "            return self.result.clone()",
        "            return self.result",
        GRAPHS,
    ),
    Mutant(
        "tiles that are timed anew in every process",
        "made_flows/inverse/gpu/autotuning.py",
        "    if kept is not None and kept in configs:",
        "    if False:",
        CALLS,
    ),
    Mutant(
        "a plan that a graph reads when it is gone",
        "made_flows/inverse/gpu/backend.py",
        "        _RECORDED[id(plan)] = plan",
        "        pass",
        CALLS,
    ),
]


def check_list() -> list[str]:
    """What is wrong with the list: texts that the source has not once."""
    wrong = []
    for mutant in MUTANTS:
        path = TOP / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            wrong.append(f"{mutant.name}: expected its text once in {mutant.file}; got {count}")
        files = [test.partition("::")[0] for test in mutant.tests.split()]
        lost = [file for file in files if not (TOP / file).exists()]
        wrong += [f"{mutant.name}: expected {file} to exist" for file in lost]
    names = [mutant.name for mutant in MUTANTS]
    return wrong + [f"{name}: is there twice" for name in set(names) if names.count(name) > 1]


def run(mutant: Mutant, tree: Path) -> str:
    """The test that notices the mutant, or an empty text."""
    path = tree / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        process = subprocess.run(
            [*PYTEST, *mutant.tests.split()],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_text(source, encoding="utf-8")
    if process.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", process.stdout, re.MULTILINE)
    if process.returncode != 1 and found is None:  # not the tests' doing
        raise RuntimeError(f"{mutant.name}: pytest did not run: {process.stdout[-2000:]}")
    return found[1] if found else "the tests do not start"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="only check that every line is there")
    parser.add_argument("names", nargs="*", help="parts of names of mutants; all by default")
    arguments = parser.parse_args()
    wrong = check_list()
    if wrong:
        print("\n".join(["mutation check: the list is out of date", *wrong]))
        return 2
    if arguments.list:
        print("\n".join(f"{mutant.name} ({mutant.file})" for mutant in MUTANTS))
        return 0
    names = arguments.names
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    start, survivors = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            shutil.copytree(TOP / name, tree / name, ignore=shutil.ignore_patterns("*.pyc"))
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
            shutil.copy(TOP / name, tree / name)
        with (tree / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
            conftest.write(QUICKLY)
        for number, mutant in enumerate(chosen, 1):
            noticed = run(mutant, tree)
            print(f"{number}/{len(chosen)} {mutant.name}: {noticed or 'NOT NOTICED'}", flush=True)
            survivors += [] if noticed else [mutant.name]
    seconds = time.monotonic() - start
    outcome = f"NOT NOTICED: {', '.join(survivors)}" if survivors else "all noticed"
    print(f"mutation check: {len(chosen)} mutants, {outcome}, in {seconds:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
