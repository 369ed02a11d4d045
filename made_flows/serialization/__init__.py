"""Models in files, and back, without running code from the file."""

from made_flows.serialization.files import load, save

__all__ = ["load", "save"]
