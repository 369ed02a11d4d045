"""MkDocs hook: writes the reference from the public names, runs pages, and fills the navigation.

The reference has a page for every group of `GROUPS` and an index of all of them, with the first
line of every docstring. A public name that no group holds stops the build. Pages of some folders
are shown with what their code printed and drew (`tools/docs_run.py`). A folder of `docs/` that is
named in the navigation with a closing slash stands for all its pages, its index first.

A number of a benchmark is written as its place, `{{page; section; row; column}}`, and read from the
benchmark's table: what the pages claim is what was measured last.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout, whichever is installed

from tools.docs_docstrings import mathml  # noqa: E402
from tools.docs_figures import PICTURES, table  # noqa: E402
from tools.docs_run import executed, is_executed  # noqa: E402

REFERENCE = "reference/"
PUBLIC_MODULES = [
    "made_flows", "made_flows.nflows", "made_flows.plotting", "made_flows.pyro",
    "made_flows.ray", "made_flows.sbi", "made_flows.sklearn",
]  # fmt: skip
ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?(?:made_flows\.)?([\w.]+)`")
MATH = re.compile(r":math:`([^`]*)`")


class Group(NamedTuple):
    """One page: its title, what it is about, and full names; "module.*" is all its names."""

    title: str
    about: str
    names: list[str]


def ours(names: str) -> list[str]:
    return [f"made_flows.{name}" for name in names.split()]


HEADS = ["Gaussian", "GaussianMixture", "Bernoulli", "Categorical"]  # of made_flows.heads

GROUPS = [
    Group(
        "Density models",
        "A MADE and a head. Called with a context, a model gives a torch distribution.",
        ours(
            "GaussianMADE GaussianMixtureMADE BernoulliMADE CategoricalMADE DensityModel Model "
            "AutoregressiveDistribution ConditionalDistribution OrderMixture Mixture "
            "MixtureDistribution ConditionalMixture MixtureGain WeightFit Embedded"
        ),
    ),
    Group(
        "Tables",
        "Columns of any kind: numbers, counts, categories, dates, with missing values.",
        [*ours("TableMADE fit_table"), "made_flows.tables.schema.Schema"],
    ),
    Group(
        "Flows",
        "Chains of transforms between data and noise, each a density of its own.",
        ours("MAF IAF Flow FlowDistribution"),
    ),
    Group(
        "Networks",
        "The conditioner itself, for models of one's own.",
        ours("MADE DependencyWarning"),
    ),
    Group(
        "Training",
        "From rows to a trained model.",
        ours("estimate fit score History TrainingError TrainingModeWarning EstimateWarning"),
    ),
    Group("Files", "Models in files, and back.", ours("save load saveable")),
    Group(
        "Bijections and heads",
        "What the parameters of one feature mean: a monotone map, or a distribution.",
        [
            *ours("Bijection Affine GatedAffine RationalQuadraticSpline Head ScaleRule"),
            *(f"made_flows.univariate.heads.{name}" for name in HEADS),
        ],
    ),
    Group(
        "Transforms",
        "The layers of a `Flow`: between data x and noise z, each with its log-determinant.",
        ours(
            "Transform AutoregressiveTransform Permutation InvertibleLinear ActNorm BatchNorm "
            "Standardize Logit Log Dequantize"
        ),
    ),
    Group(
        "Inverse and acceleration",
        "The slow direction made fast, in models of other libraries and in networks of one's own.",
        [
            *ours(
                "accelerate acceleration undo_acceleration AccelerationReport AccelerationWarning"
            ),
            "made_flows.inverse.*",
        ],
    ),
    Group(
        "Diagnostics",
        "Checks of what a network claims to be. For posteriors there is "
        "[`made_flows.pyro.diagnose`][].",
        ours(
            "check_autoregressive AutoregressiveReport AutoregressiveError check_bijection "
            "BijectionReport check_head HeadReport"
        ),
    ),
    Group("Plotting", "Pictures, by matplotlib (extra `plot`).", ["made_flows.plotting.*"]),
    Group(
        "Pyro",
        "Pyro's names with Pyro's signatures, and guides (extra `pyro`).",
        ["made_flows.pyro.*"],
    ),
    Group("sbi", "Density estimators for sbi's trainers (extra `sbi`).", ["made_flows.sbi.*"]),
    Group(
        "Ray Data",
        "Scores and samples of tables of any size, by many workers (extra `ray`).",
        ["made_flows.ray.*"],
    ),
    Group(
        "scikit-learn",
        "Densities, outlier detectors and imputers, as estimators (extra `sklearn`).",
        ["made_flows.sklearn.*", "made_flows.sklearn.base.TableEstimator"],
    ),
    Group(
        "nflows",
        "nflows' names with nflows' signatures (extra `nflows`).",
        ["made_flows.nflows.*"],
    ),
]


def full_names(group: Group) -> list[str]:
    """Returns a group's names, those of whole modules listed."""
    names = []
    for name in group.names:
        module, _, last = name.rpartition(".")
        if last == "*":
            names += [f"{module}.{public}" for public in importlib.import_module(module).__all__]
        else:
            names.append(name)
    return names


def check_groups() -> None:
    """Raises where a public name has no group, or more than one."""
    public = {f"{m}.{name}" for m in PUBLIC_MODULES for name in importlib.import_module(m).__all__}
    grouped = [name for group in GROUPS for name in full_names(group)]
    if missing := sorted(public - set(grouped)):
        raise PluginError(f"Expected a group of tools/docs_pages.py for {', '.join(missing)}")
    if twice := sorted({name for name in grouped if grouped.count(name) > 1}):
        raise PluginError(f"Expected one group of tools/docs_pages.py for {', '.join(twice)}")


def first_line(name: str) -> str:
    """Returns the first line of a docstring in Markdown."""
    module, _, last = name.rpartition(".")
    line = (inspect.getdoc(getattr(importlib.import_module(module), last)) or "").split("\n")[0]
    line = MATH.sub(lambda formula: f"<span>{mathml(formula[1], 'inline')}</span>", line)
    return ROLE.sub(r"`\1`", line).replace("``", "`")


def slug(group: Group) -> str:
    return group.title.lower().replace(" ", "-")


def group_page(group: Group) -> str:
    entries = "\n\n".join(f"::: {name}" for name in full_names(group))
    return f"# {group.title}\n\n{group.about}\n\n{entries}\n"


def index_page() -> str:
    """Returns the list of all names, each a link with its line."""
    parts = ["# Reference\n\nThe public names by what they are for; `mf` is `made_flows`."]
    for group in GROUPS:
        lines = []
        for name in full_names(group):
            short = name.replace("made_flows", "mf", 1) if name.count(".") == 1 else name
            lines.append(f"- [`{short}`][{name}]: {first_line(name)}")
        heading = f"## [{group.title}]({slug(group)}.md)\n\n{group.about}"
        parts.append(heading + "\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def reference_pages() -> dict[str, str]:
    """Returns the generated pages: path inside docs/ -> Markdown, the index first."""
    check_groups()
    pages = {f"{REFERENCE}index.md": index_page()}
    return pages | {f"{REFERENCE}{slug(group)}.md": group_page(group) for group in GROUPS}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = [expanded(entry, Path(config.docs_dir)) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    docs = Path(config.docs_dir)
    for path, draw in PICTURES.items():
        files.append(File.generated(config, path, content=draw(docs)))
    for page in sorted(docs.rglob("*.md")):
        if is_executed(page):
            place = page.relative_to(docs)
            shown = executed(page)
            files.remove(files.get_file_from_path(place.as_posix()))
            files.append(File.generated(config, place.as_posix(), content=shown.text))
            for name, content in shown.pictures.items():
                path = (place.parent / name).as_posix()
                files.append(File.generated(config, path, content=content))
    return files


def measured(found: re.Match[str], folder: Path) -> str:
    """Returns the cell of a benchmark's table, whose row is found by its first column."""
    page, section, row, column = (part.strip() for part in found[1].split(";"))
    columns = table((folder / page).read_text("utf-8"), section)
    rows = next(iter(columns.values()))
    if column not in columns or row not in rows:
        raise PluginError(f"Expected a row and column of {page}, {section}; got {row}; {column}")
    return columns[column][rows.index(row)].strip("*")


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: object) -> str:
    """Puts in numbers, and formulas between dollar signs as MathML, which browsers draw."""
    folder = Path(config.docs_dir) / "benchmarks"
    markdown = re.sub(r"\{\{([^{}]+;[^{}]+)\}\}", lambda found: measured(found, folder), markdown)

    def inline(found: re.Match[str]) -> str:
        return f"<span>{mathml(found[1], 'inline')}</span>"

    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", markdown, flags=re.DOTALL | re.MULTILINE)
    for i in range(0, len(parts), 2):
        block = re.sub(
            r"^\$\$(.+?)\$\$$", lambda found: f"<div>{mathml(found[1], 'block')}</div>",
            parts[i], flags=re.DOTALL | re.MULTILINE,
        )  # fmt: skip
        parts[i] = re.sub(r"(?<![\w$\\])\$([^$\n]+)\$(?!\w)", inline, block)
    return "".join(parts)


def expanded(entry: dict[str, Any], docs: Path) -> dict[str, Any]:
    """Replaces "folder/" by the list of the folder's pages."""
    ((title, target),) = entry.items()
    if not (isinstance(target, str) and target.endswith("/")):
        return entry
    if target == REFERENCE:
        return {title: [f"{REFERENCE}index.md", *(f"{REFERENCE}{slug(g)}.md" for g in GROUPS)]}
    found = sorted(path.relative_to(docs).as_posix() for path in (docs / target).glob("*.md"))
    return {title: sorted(found, key=lambda page: not page.endswith("/index.md"))}
