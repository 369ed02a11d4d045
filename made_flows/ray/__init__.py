"""Scores and samples of tables of any size on many machines, by Ray Data's ``map_batches``."""

from made_flows.ray.batches import Sample, Score

__all__ = ["Sample", "Score"]
