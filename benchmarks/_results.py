"""Results of benchmarks that can be interrupted: a call goes on from what others have finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class ResultsFile:
    """Results in a file, a line of JSON each.

    Args:
        folder: of the file.

    Attributes:
        lines: all results, of earlier calls too.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        text = self._path.read_text() if self._path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def done(self, *names: str) -> set[tuple[Any, ...]]:
        """Return what all results have under some names."""
        return {tuple(line[name] for name in names) for line in self.lines}

    def add(self, line: dict[str, Any]) -> None:
        """Add a result, and write it at once."""
        text = json.dumps(line)
        with self._path.open("a") as file:
            file.write(text + "\n")
        self.lines.append(json.loads(text))
