"""Maximum likelihood: rows in, a trained model and its history out."""

from made_flows.training.history import History, TrainingError
from made_flows.training.likelihood import score
from made_flows.training.loop import fit

__all__ = ["History", "TrainingError", "fit", "score"]
