"""The documentation's own machinery: pages with their output, numbers of benchmarks, formulas."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("matplotlib")
pytest.importorskip("latex2mathml")

from mkdocs.exceptions import PluginError

from tools import docs_figures, docs_pages, docs_run

PAGE = """# A page

```python
x = 20
print(x + 1)
```

Words.

```python A line that rises
from matplotlib.figure import Figure
figure = Figure()
figure.add_subplot().plot([0, x])
figure
```
"""

TABLE = """# Speed

| D, H | ours | theirs |
| ---- | ---: | -----: |
| 6, 8 | **2.5** | 30 |

## Later

| D, H | ours |
| ---- | ---: |
| 6, 8 | 7 |
"""


def written(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_a_page_shows_what_it_prints_and_draws(tmp_path: Path) -> None:
    text, pictures = docs_run.executed(written(tmp_path, PAGE))
    assert "```{.text .output}\n21\n```" in text
    assert "![A line that rises](page-1.png)" in text
    assert text.index("21") < text.index("Words.") < text.index("page-1.png")
    assert list(pictures) == ["page-1.png"]
    assert pictures["page-1.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import warnings\nwarnings.warn('odd')", UserWarning, "odd"),
        ("from matplotlib.figure import Figure\nFigure()", ValueError, "words after"),
    ],
)
def test_a_page_that_is_wrong_is_not_built(
    tmp_path: Path, code: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        docs_run.executed(written(tmp_path, f"```python\n{code}\n```\n"))


def test_numbers_and_formulas_are_put_in(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/speed.md").write_text(TABLE)
    config = SimpleNamespace(docs_dir=str(tmp_path))

    def page(text: str) -> str:
        return docs_pages.on_page_markdown(text, config)  # type: ignore[arg-type]

    assert page("It takes {{speed.md; Speed; 6, 8; ours}} ms") == "It takes 2.5 ms"
    assert page("{{speed.md; Later; 6, 8; ours}}") == "7"
    with pytest.raises(PluginError, match="got 7, 8; ours"):
        page("{{speed.md; Speed; 7, 8; ours}}")
    assert "<math" in page("where $x_{<i}$ is")
    assert "block" in page("$$p(x) = 1$$")
    assert page("`$x$` costs\n```console\n$ make docs $x\n```\n").count("<math") == 0


def test_the_picture_of_the_home_page_has_every_line() -> None:
    docs = Path(docs_pages.ROOT, "docs")
    columns = docs_figures.table((docs / "benchmarks/inverse.md").read_text("utf-8"),
                                 "Growth with features D")  # fmt: skip
    assert set(docs_figures.STYLES) < set(columns)
    assert docs_figures.sampling(docs).startswith(b"\x89PNG")
