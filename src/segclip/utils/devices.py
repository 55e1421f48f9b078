"""Where a model works: what "auto" stands for, and which devices there are."""

import torch


def pick_device(device: str | torch.device) -> torch.device:
    """What "auto" stands for here, which is CUDA, Apple's GPU or the processor, in this order; or the device named.

    Raises:
        ValueError: a device that torch does not know or that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used ({why}); give auto, cpu, cuda or mps") from error
