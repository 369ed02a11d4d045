"""The house: which folder may import which, what is public, and how long a module may be.

Imports are read from the syntax tree, so that those for types only and those inside functions count
as well.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType

import pytest
import torch

import made_flows as mf

PACKAGE = Path(__file__).resolve().parent.parent / "made_flows"
LONGEST = 450

# A module imports its own folder and the floors below, never its own floor's other folders.
# The ground floor is every module that lies in made_flows itself, but for what starts the command.
FLOORS = [
    {"ground"},
    {"nn", "univariate"},
    {"diagnostics", "inverse", "plotting", "serialization"},
    {"distributions", "interop", "transforms"},
    {"training"},
    {"models"},
    {"tables"},
    {"cli", "nflows", "public names", "pyro", "ray", "sbi", "sklearn"},
]

PUBLIC = {
    "made_flows": """
        IAF MADE MAF AccelerationReport AccelerationWarning ActNorm Affine
        AutoregressiveDistribution AutoregressiveError AutoregressiveReport AutoregressiveTransform
        BatchNorm BernoulliMADE Bijection BijectionReport CategoricalMADE ConditionalDistribution
        ConditionalMixture DensityModel DependencyWarning Dequantize Embedded EstimateWarning Flow
        FlowDistribution GatedAffine GaussianMADE GaussianMixtureMADE Head HeadReport History
        InvertibleLinear Log Logit Mixture MixtureDistribution MixtureGain Model OrderMixture
        Permutation RationalQuadraticSpline ScaleRule Standardize TableMADE TrainingError
        TrainingModeWarning Transform WeightFit accelerate acceleration check_autoregressive
        check_bijection check_head estimate fit fit_table load save saveable score
        undo_acceleration
    """,
    "made_flows.pyro": """
        IAF MAF AffineAutoregressive AutoIAF AutoRegressiveNN BernoulliMADE CategoricalMADE
        ConditionalAffineAutoregressive ConditionalAutoRegressiveNN ConditionalFlowTransform
        ConditionalIAF ConditionalMAF ConditionalSplineAutoregressive Diagnosis FlowMixture
        FlowTransform GaussianMADE GaussianMixtureMADE MADENetwork ModelDistribution Probe PyroModel
        SplineAutoregressive affine_autoregressive conditional_affine_autoregressive
        conditional_spline_autoregressive diagnose fit_guide GuideFit refine
        spline_autoregressive to_pyro Refinement
    """,
    "made_flows.nflows": """
        MADE AsDistribution AsFlow AsTransform Flow MaskedAffineAutoregressiveTransform
        MaskedAutoregressiveFlow MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        MixtureOfGaussiansMADE StandardNormal TrainingModeWarning
    """,
    "made_flows.ray": "Sample Score",
    "made_flows.sbi": "Builder Estimator estimate iaf made maf spline",
    "made_flows.sklearn": "MADEDensity MADEDetector MADEImputer MADEOutlierDetector",
    "made_flows.plotting": """
        column_scores connections coverage image_grid intervals masks pair_plot pit_histogram
        training_curve
    """,
    "made_flows.cli": "app",
}

# The package without which a module's import names its extra, and the extra where it is another.
EXTRAS = {
    "made_flows.cli": "typer",
    "made_flows.pyro": "pyro",
    "made_flows.nflows": "nflows",
    "made_flows.sbi": "sbi",
    "made_flows.sklearn": "sklearn",
}
OPTIONAL = [
    "arviz", "llvmlite", "matplotlib", "nflows", "normflows", "pandas", "polars", "pyarrow", "pyro",
    "ray", "rich", "sbi", "sklearn", "triton", "typer", "zuko",
]  # fmt: skip


# --- Reading the imports --------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """The name of a module without the package's own: "nn.made", "nn", and "" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def named_modules(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that an import statement could mean; relative imports are not used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"Expected absolute imports; got one in line {node.lineno}"
            for alias in node.names:
                # "from a import b" imports a.b where that is a module, and else b of a.
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("made_flows.") in MODULES else str(node.module)


def imports_of(tree: ast.AST) -> set[str]:
    ours = {name for name in named_modules(tree) if f"{name}.".startswith("made_flows.")}
    return {name.removeprefix("made_flows").removeprefix(".") for name in ours} & set(MODULES)


IMPORTS = {name: imports_of(tree) - {name} for name, tree in TREES.items()}
EDGES = {(name, target) for name, targets in IMPORTS.items() for target in targets}


def folder(name: str) -> str:
    top, _, inner = name.partition(".")
    if not top:
        return "public names"
    if name == "__main__":
        return "cli"
    return top if inner or MODULES[top].name == "__init__.py" else "ground"


def floor(name: str) -> int:
    places = [place for place, folders in enumerate(FLOORS) if folder(name) in folders]
    assert len(places) == 1, f"Expected one floor for the folder {folder(name)!r}; name it above"
    return places[0]


def upward(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The imports that leave their folder without going down."""
    return {(a, b) for a, b in edges if folder(a) != folder(b) and floor(b) >= floor(a)}


def in_circles(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The imports that are left when modules without an open import, or importer, are removed."""
    while True:
        importers = {a for a, _ in edges}
        imported = {b for _, b in edges}
        inside = {(a, b) for a, b in edges if a in imported and b in importers}
        if inside == edges:
            return edges
        edges = inside


def listed(edges: set[tuple[str, str]]) -> str:
    return "\n".join(f"{a or 'made_flows'} imports {b}" for a, b in sorted(edges))


# --- Imports --------------------------------------------------------------------------------------


def test_imports_go_down() -> None:
    found = upward(EDGES)
    assert not found, f"Expected imports of lower floors; got\n{listed(found)}"


def test_imports_make_no_circle() -> None:
    found = in_circles(EDGES)
    assert not found, f"Expected no circle of imports; got one among\n{listed(found)}"


def test_a_circle_and_an_upward_import_are_found() -> None:
    assert in_circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")}) == {
        ("a", "b"), ("b", "c"), ("c", "a"),
    }  # fmt: skip
    assert upward({("nn.made", "nn.masks"), ("nn.made", "models.density")}) == {
        ("nn.made", "models.density")
    }
    tree = ast.parse(
        textwrap.dedent("""
            if TYPE_CHECKING:
                from made_flows.nn.made import MADE
            def function():
                from made_flows import plotting
        """)
    )
    assert imports_of(tree) == {"nn.made", "plotting"}


BARE = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import torch, made_flows as mf
model = mf.GaussianMADE(3, hidden_features=(8,))()
print(*model.log_prob(model.sample((2,))).shape)
print("torch._dynamo" in sys.modules)  # as long to import as all else
for module in {[*EXTRAS]!r}:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def bare() -> list[str]:
    """What a fresh interpreter prints that finds none of the optional packages."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE],
        cwd=PACKAGE.parent, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_hard_dependencies_are_enough(bare: list[str]) -> None:
    # Not only the import: a model is scored and sampled, which takes the eager inverse.
    assert bare[:2] == ["2", "False"]


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_extra_is_named(module: str, bare: list[str]) -> None:
    extra = module.rpartition(".")[2]
    said = bare[2 + [*EXTRAS].index(module)]
    assert f"pip install 'made-flows[{extra}]'" in said
    assert len(bare) == 2 + len(EXTRAS)


# --- Names, ideas, lengths ------------------------------------------------------------------------


def public_names(module: ModuleType) -> set[str]:
    """What a star import without __all__ would bring, less the package's own modules."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (isinstance(value, ModuleType) and value.__name__.startswith("made_flows."))
        and getattr(value, "__class__", None).__module__ != "__future__"
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_the_list(name: str) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(name)
    expected = set(PUBLIC[name].split())
    assert set(module.__all__) == expected
    assert public_names(module) == expected


def functions_of(name: str, value: object) -> Iterator[tuple[str, Callable[..., object]]]:
    """A public function, or a class's constructor and methods, as far as they are ours."""
    members = {name: value}
    if isinstance(value, type):
        names = [each for each in dir(value) if each == "__init__" or not each.startswith("_")]
        members = {f"{name}.{each}": inspect.getattr_static(value, each) for each in names}
    for place, member in members.items():
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function) and function.__module__.startswith("made_flows"):
            yield place, function


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_say_their_keywords(name: str) -> None:
    # What a plug-in calls kwargs, as the other library does, are those of the user's own model.
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(name)
    found = [
        place
        for each in PUBLIC[name].split()
        for place, function in functions_of(each, getattr(module, each))
        for word in inspect.signature(function).parameters.values()
        if word.kind is word.VAR_KEYWORD and not (name in EXTRAS and word.name == "kwargs")
    ]
    assert not found, f"Expected keywords that editors show; got any, of {found}"


def test_options_that_are_passed_on_are_those_of_the_function() -> None:
    def words(function: Callable[..., object]) -> set[str]:
        return {*inspect.signature(function).parameters}

    from made_flows.tables.model import TableMADE, TableOptions
    from made_flows.training.loop import FitOptions, fit

    own = {"model", "data", "context", "validation", "average"}
    assert {*FitOptions.__annotations__} == words(fit) - own
    assert {*TableOptions.__annotations__} == words(TableMADE) - {"schema"}


FOLDERS = [name for name, path in MODULES.items() if path.name == "__init__.py"]


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_state_their_idea(name: str) -> None:
    idea = (ast.get_docstring(TREES[name]) or "").split("\n\n")[0]
    assert idea.endswith("."), "Expected a sentence"
    assert len(idea.splitlines()) <= 2


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"Expected at most {LONGEST} lines, one idea; got {lines}"


@pytest.mark.parametrize("name", MODULES)
def test_users_errors_are_no_assertions(name: str) -> None:
    found = [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, ast.Assert)]
    assert not found, f"Expected errors of `_checks`, which -O keeps; got assert in lines {found}"


@pytest.mark.parametrize("name", MODULES)
def test_generators_of_other_devices_are_left_alone(name: str) -> None:
    # In doctests it may stand: a syntax tree has these as strings.
    found = [
        node.lineno
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.manual_seed"
    ]
    assert not found, f"Expected seeded() or seed_generators(); got torch.manual_seed in {found}"


def test_the_version_is_that_of_the_package() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'path = "made_flows/__init__.py"' in text
    version = importlib.import_module("made_flows").__version__
    assert [part.isdecimal() for part in version.split(".")[:2]] == [True, True]


# --- What CONTRIBUTING says of the house ----------------------------------------------------------

PROSE = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACES = re.findall(r"`([\w/]+\.py)`:\s+`([\w.]+)`", PROSE)


@pytest.mark.parametrize(("file", "name"), sorted(set(PLACES)))
def test_places_that_contributing_names_exist(file: str, name: str) -> None:
    tree: ast.AST = TREES[module_name(PACKAGE / file)]
    for part in name.split("."):
        defined = {
            getattr(node, "name", None): node
            for node in ast.iter_child_nodes(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        assert part in defined, f"Expected {name} in {file}"
        tree = defined[part]


def test_excerpts_of_contributing_are_lines_of_the_tree() -> None:
    excerpts = re.findall(r"```py\n# (\S+)\n(.*?)```", PROSE, re.DOTALL)
    assert len(excerpts) > 3
    for file, code in excerpts:
        text = (PACKAGE.parent / file).read_text(encoding="utf-8").splitlines()
        missing = set(code.splitlines()) - set(text)
        assert not missing, f"Expected lines of {file}; got {missing}"


def calls_of(function: Callable[[], object]) -> list[tuple[str, str]]:
    """The package's functions that a call enters, as (file, name), in order."""
    calls = []

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            owner = frame.f_locals.get("self")
            names = [frame.f_code.co_name]
            for kind in type(owner).__mro__ if owner is not None else ():
                if vars(kind).get(names[0]) is not None:
                    names.insert(0, kind.__name__)
                    break
            calls.append((path.relative_to(PACKAGE).as_posix(), ".".join(names)))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("walk", ["log_prob", "sample"])
def test_walks_of_contributing_are_those_that_a_value_takes(walk: str) -> None:
    pytest.importorskip("llvmlite")
    flow = mf.MAF(3, transforms=1).eval()
    x = torch.zeros(2, 3)
    functions = {"log_prob": lambda: flow().log_prob(x), "sample": lambda: flow().sample((2,))}
    functions[walk]()  # compile
    flow = copy.deepcopy(flow)  # of which nothing is kept yet
    calls = iter(calls_of(functions[walk]))
    text = PROSE.partition(f"<!-- walk: {walk} -->")[2].partition("\n\n")[0]
    steps = re.findall(r"`([\w/]+\.py)`:\s+`([\w.]+)`", text)
    assert len(steps) > 8
    for step in steps:
        assert step in calls, f"Expected {step} to be called after the ones before it"
