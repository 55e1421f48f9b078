"""Compiled and plain encoders agree, for batches of several sizes; see test_encoder.py."""

import skimage.data
import torch

from helpers.pixels import normalise
from helpers.small_model import small_model
from segclip.segment.encoder import DTYPES, Encoder

model = small_model()
for dtype in DTYPES:
    plain, compiled = Encoder(model, dtype), Encoder(model, dtype, compile=True)
    for count, side in ((3, 64), (2, 64), (1, 96)):
        photo = torch.from_numpy(skimage.data.chelsea()[:side, : side * count])
        windows = photo.unflatten(1, (count, side)).movedim(1, 0)
        if dtype == "float32":
            found = vars(compiled(windows))
            for name, value in vars(plain(windows)).items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        else:  # a program keeps more digits between its steps than bfloat16 has
            with torch.inference_mode():
                expected, patches = (one._encode_patches(normalise(windows)) for one in (plain, compiled))
            assert 0 < (patches - expected).norm() < 0.01 * expected.norm()
