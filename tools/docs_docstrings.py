"""Griffe extension: reads the docstrings' reStructuredText as the Markdown of the documentation.

Formulas become MathML (which browsers draw by themselves: no script, no font, no network), roles
become links to what they name, simple tables and arguments described together take the form that
Markdown and Griffe know, and an Example is the section that Griffe knows as Examples.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator

import griffe
from latex2mathml.converter import convert

MATH_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *(?=\n\1 )))*)$", re.MULTILINE)
MATH = re.compile(r":math:`([^`]+)`")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
TABLE = re.compile(r"^(=+(?: +=+)+)\n(.+)\n\1\n((?:.+\n)+?)\1$", re.MULTILINE)
SHARED = re.compile(
    r"^    (\*{0,2}\w+(?:,\s+\*{0,2}\w+)+):((?: .*)?(?:\n {5,}\S.*)*)$", re.MULTILINE
)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
FUNCTION = re.compile(r"<mi>(arg|cos|det|exp|lim|log|max|min|sin|tanh)</mi>(?!<mo)")

INTERNAL = {"ABC", "KeyedModule"}
"""Bases that say nothing to readers, with what is inherited from them."""


def mathml(latex: str, display: str) -> str:
    """Converts a formula, with the thin space that belongs between log and its argument."""
    element = convert(" ".join(latex.split()), display=display)
    return FUNCTION.sub(r'<mi>\1</mi><mspace width="0.17em"/>', element)


def table(match: re.Match[str]) -> str:
    """Converts a simple table, whose columns are as wide as its rules of equal signs."""
    columns = [column.span() for column in re.finditer("=+", match[1])]
    columns[-1] = (columns[-1][0], None)  # the last column may run past its rule
    rows = [[line[start:end].strip() for start, end in columns] for line in match[3].splitlines()]
    header = [match[2][start:end].strip() for start, end in columns]
    lines = [header, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown(text: str, scope: griffe.Object) -> str:
    """Converts one docstring; scope is the object in which short names are looked up."""

    def math_block(match: re.Match[str]) -> str:
        return f"{match[1]}<div>{mathml(textwrap.dedent(match[2]), 'block')}</div>"

    def role(match: re.Match[str]) -> str:
        name = match[2]
        try:
            identifier = scope.resolve(name)
        except griffe.NameResolutionError:
            identifier = name
        label = name.rpartition(".")[2] if match[1] else name
        link = f'<autoref optional identifier="{identifier}">'
        return f"{link}<code>{html.escape(label)}</code></autoref>"

    def each_argument(match: re.Match[str]) -> str:
        return "\n".join(f"    {name}:{match[2]}" for name in re.split(r",\s+", match[1]))

    # Griffe knows no constructor of a named tuple, only its attributes.
    if isinstance(scope, griffe.Class) and "NamedTuple" in map(str, scope.bases):
        text = text.replace("\nArgs:\n", "\nAttributes:\n")
    text = SHARED.sub(each_argument, TABLE.sub(table, text))
    text = MATH_BLOCK.sub(math_block, text)
    # In a span, because Markdown would take a line that begins with <math> for a block.
    text = MATH.sub(lambda match: f"<span>{mathml(match[1], 'inline')}</span>", text)
    return EXAMPLE.sub("Examples:", ROLE.sub(role, text))


def objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    """Goes through an object and everything defined in it."""
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from objects(member)


class ReadDocstrings(griffe.Extension):
    """Converts every docstring of the package once it is loaded, when its names are known."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        for item in objects(pkg):
            if isinstance(item, griffe.Class):
                item.bases = [base for base in item.bases if str(base) not in INTERNAL]
            if item.docstring is not None:
                item.docstring.value = markdown(item.docstring.value, item)
