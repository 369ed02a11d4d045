"""The list of the mutation check: every line that it breaks is in the source, once."""

from __future__ import annotations

from tools import mutation_check


def test_the_list_is_up_to_date() -> None:
    assert mutation_check.check_list() == []


def test_a_line_that_is_gone_and_a_test_that_is_gone_are_named(monkeypatch) -> None:
    first = mutation_check.MUTANTS[0]
    lost = [first._replace(name="gone", old="no such line"), first._replace(tests="tests/none.py")]
    monkeypatch.setattr(mutation_check, "MUTANTS", [*lost, first])
    line, test, twice = mutation_check.check_list()
    assert line == f"gone: expected its text once in {first.file}; got 0"
    assert test.endswith("expected tests/none.py to exist")
    assert twice.endswith("is there twice")
