"""Processes that torchrun started, and the GPUs that they take."""

import pytest
import torch

from segclip.utils.processes import join_processes


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", 2), ("RANK", 1), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    expected = r"2 processes on a machine with 1 GPU\(s\); start --nproc-per-node 1"
    with pytest.raises(ValueError, match=expected), join_processes():
        pass
