"""Compiled and plain encoders agree, for batches of several sizes; see test_encoder.py."""

import skimage.data
import torch
from small_model import small_model

from segclip.encoder import Encoder

model = small_model()
plain, compiled = Encoder(model), Encoder(model, compile=True)
for count, side in ((3, 64), (2, 64), (1, 96)):
    windows = torch.from_numpy(skimage.data.chelsea()[:side, : side * count]).unflatten(1, (count, side)).movedim(1, 0)
    for name, value in vars(plain(windows)).items():
        torch.testing.assert_close(getattr(compiled(windows), name), value, rtol=1e-4, atol=1e-5)
