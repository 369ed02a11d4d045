"""Layers of other libraries, read so that their slow direction can be made fast."""
