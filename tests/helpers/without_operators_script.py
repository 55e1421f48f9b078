"""The package works with a torch that has none of the operators which it does not document; see test_encoder.py."""

import torch


class Without:
    """A namespace of torch's operators, less those that only inference knows."""

    def __init__(self, namespace: object) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> object:
        if name in ("_linear_pointwise", "_is_mkldnn_bf16_supported", "gelu_"):
            raise AttributeError(name)
        return getattr(self._namespace, name)


torch.ops.mkldnn, torch.ops.aten = Without(torch.ops.mkldnn), Without(torch.ops.aten)  # type: ignore[assignment]

from helpers.pixels import normalise  # noqa: E402
from helpers.small_model import SENTENCE, small_model  # noqa: E402
from segclip.segment.encoder import DTYPES, Encoder  # noqa: E402

model = small_model(SENTENCE)
pixels = normalise(torch.randint(256, (2, 56, 56, 3), dtype=torch.uint8))
with torch.inference_mode():
    expected = model.image.encode_patches(pixels)
    for dtype in DTYPES:
        found = Encoder(model, dtype)._encode_patches(pixels)
        limit = 1e-5 if dtype == "float32" else 0.02
        assert (found - expected).norm() < limit * expected.norm(), dtype
