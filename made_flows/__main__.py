"""The command: ``made-flows``, or ``python -m made_flows``."""

import sys


def main() -> None:
    """Run the command; without its extra, say which."""
    try:
        from made_flows.cli import app
    except ImportError as error:
        sys.exit(f"made-flows: {error}")
    app()


if __name__ == "__main__":
    main()
