"""Whole programs of other people; `make clients` adds those that need more than CI installs."""

import os

collect_ignore_glob = [] if os.environ.get("MADE_FLOWS_CLIENTS") else ["test_wrappers.py"]
