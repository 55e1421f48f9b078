"""Named training runs, each a function that returns its configuration."""

from segclip.config import TrainConfig


def mini() -> TrainConfig:
    """The embedded model's centers over its frozen towers.

    Command: runs/mini.sh FOLDER
    """
    return TrainConfig()


RECIPES = {"mini": mini}
