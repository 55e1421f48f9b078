"""Weights: by name, from a file of any format, from a hub; and into our own file."""

from segclip.checkpoints.loading import convert, load
from segclip.checkpoints.native import CheckpointError, load_model, save_model

__all__ = ["CheckpointError", "convert", "load", "load_model", "save_model"]
