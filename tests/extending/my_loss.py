"""A loss: python my_loss.py train debug --losses.balance 0.5 --out RUN"""

import sys

from torch import Tensor

from segclip.cli import main
from segclip.losses import LOSSES, Loss, LossInputs


def balance(inputs: LossInputs) -> Tensor:
    """How far the centers are from taking as many patches each: KL of their shares to even ones, 0 to log C."""
    assert inputs.soft is not None
    share = inputs.soft.mean(dim=-1)
    return (share * (share.shape[1] * share).log()).sum(dim=1).mean()


LOSSES["balance"] = Loss(balance)

if __name__ == "__main__":
    sys.exit(main())
