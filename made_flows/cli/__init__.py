"""The command ``made-flows``: models of tables in files, from a shell."""

try:
    import pyarrow as _pyarrow  # noqa: F401
    import rich as _rich  # noqa: F401
    import typer as _typer  # noqa: F401
except ImportError as error:
    raise ImportError(
        "Expected typer, rich and pyarrow to be installed, which the command made-flows is made "
        f"of; got no {error.name}. pip install 'made-flows[cli]'"
    ) from error

from made_flows.cli.commands import app

__all__ = ["app"]
