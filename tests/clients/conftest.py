"""Whole programs of other people: `make clients` runs them, and CI does where it asks for them."""

import os

collect_ignore_glob = [] if os.environ.get("MADE_FLOWS_CLIENTS") else ["test_*.py"]
