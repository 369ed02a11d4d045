"""MkDocs hook: writes one reference page for each public module, and fills the navigation.

A module is public when no part of its name starts with an underscore. A folder of `docs/` that is
named in the navigation with a closing slash stands for all its pages, its index first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "made_flows"
REFERENCE = "reference/"

# From the ground floor up: what the package depends on downwards. Others follow by name.
FIRST = [
    "density", "autoregressive_flows", "flows", "transforms", "bijections", "splines",
    "normalization", "data_transforms", "bases", "made", "heads", "training", "serialization",
    "diagnostics", "masks", "linear",
]  # fmt: skip


def module_names() -> list[str]:
    """Returns the dotted names of the public modules, without the package's own name."""
    names = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    place = {name: number for number, name in enumerate(FIRST)}
    return sorted(names, key=lambda name: (place.get(name, len(FIRST)), name))


def reference_pages() -> dict[str, str]:
    """Returns the generated pages: path inside docs/ -> Markdown."""
    names = module_names()
    pages = {
        f"{REFERENCE}{name}.md": f"# made_flows.{name}\n\n::: made_flows.{name}\n" for name in names
    }
    rows = "\n".join(f"- [`made_flows.{name}`]({name}.md)" for name in names)
    pages[f"{REFERENCE}index.md"] = (
        "# Reference\n\nThe public names are those of `import made_flows as mf`.\n"
        f"They are defined in these modules.\n\n{rows}\n"
    )
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = [expanded(entry, Path(config.docs_dir)) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def expanded(entry: dict[str, Any], docs: Path) -> dict[str, Any]:
    """Replaces "folder/" by the list of the folder's pages."""
    ((title, target),) = entry.items()
    if not (isinstance(target, str) and target.endswith("/")):
        return entry
    if target == REFERENCE:
        pages = [f"{REFERENCE}index.md", *(f"{REFERENCE}{name}.md" for name in module_names())]
    else:
        found = sorted(path.relative_to(docs).as_posix() for path in (docs / target).glob("*.md"))
        pages = sorted(found, key=lambda page: not page.endswith("/index.md"))
    return {title: pages}
