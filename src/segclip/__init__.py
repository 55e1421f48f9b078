"""SegCLIP: segment photos by words (arXiv 2211.14813).

    import segclip
    result = segclip.Segmenter("mini").segment("photo.jpg", ["cat", "sofa"])
    result.overlay().show()

The names below are loaded when first used: torch takes a second, and `segclip --help` does not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segclip.checkpoints.loading import load
    from segclip.config import ModelConfig
    from segclip.model.segclip import Noise, SegCLIP
    from segclip.segment.result import Segmentation
    from segclip.segment.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["ModelConfig", "Noise", "SegCLIP", "Segmentation", "Segmenter", "__version__", "load"]

_HOMES = {
    "ModelConfig": "segclip.config",
    "Noise": "segclip.model.segclip",
    "SegCLIP": "segclip.model.segclip",
    "Segmentation": "segclip.segment.result",
    "Segmenter": "segclip.segment.segmenter",
    "load": "segclip.checkpoints.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segclip' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
