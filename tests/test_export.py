"""Exported files give what the model gives, for any number and size of photos; and what cannot be exported is named."""

import json
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from helpers import ROOT
from helpers.export_script import LABELS, varied_model
from helpers.pixels import normalise
from helpers.small_model import CLIP, SENTENCE, small_model
from helpers.small_runs import run_script
from PIL import Image
from torch import Tensor

from segclip.cli import main
from segclip.export import export
from segclip.model.segclip import SegCLIP
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.protocols.paper import paper_scores
from segclip.text.prompts import PAPER_TEMPLATES

MODELS = {"clip": CLIP, "sentence": SENTENCE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    run_script("export_script.py", str(folder))
    return folder


def photos(model: SegCLIP, *patches: tuple[int, int, int]) -> list[Tensor]:
    """Real photos, so many of so many rows and columns of patches."""
    patch, batches = model.config.image.patch, []
    for count, rows, columns in patches:
        size = (columns * patch, rows * patch)
        images = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut())[:count]
        batches.append(normalise(np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in images])))
    return batches


def run(file: Path, pixels: Tensor) -> list[np.ndarray]:
    found = onnxruntime.InferenceSession(str(file)).run(None, {"pixels": pixels.numpy()})
    return [np.asarray(one) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_regions_are_the_models(folder: Path, name: str) -> None:
    model = varied_model(MODELS[name])
    program = torch.export.load(folder / f"{name}.pt2").module()
    for pixels in photos(model, (1, 4, 4), (3, 3, 7), (2, 9, 4)):
        with torch.inference_mode():
            output = model.encode_image(pixels)
            expected = (output.embedding, output.regions, output.soft)
            programs = program(pixels)
        for own, theirs, truth in zip(run(folder / f"{name}.onnx", pixels), programs, expected, strict=True):
            np.testing.assert_allclose(own, truth, atol=1e-4)
            torch.testing.assert_close(theirs, truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "background"), [("labels", None), ("background", 0.4)])
def test_label_maps_are_the_papers(folder: Path, name: str, kind: str, background: float | None) -> None:
    model = varied_model(MODELS[name])
    embeds = LabelEmbedder(model)(LABELS, PAPER_TEMPLATES)
    for pixels in photos(model, (3, 4, 4), (2, 5, 8)):
        with torch.inference_mode():
            scale = float(model.logit_scale.exp())
            size = (pixels.shape[2], pixels.shape[3])
            scores = paper_scores(model.encode_image(pixels), embeds, scale, size, background)
        expected = scores.argmax(dim=1) + (background is None)
        (labels,) = run(folder / f"{name}-{kind}.onnx", pixels)
        assert labels.dtype == np.int32 and (labels == expected.numpy()).mean() > 0.999
        assert len(np.unique(labels)) > 1


@pytest.mark.slow
def test_the_example_needs_nothing_of_ours(folder: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(skimage.data.chelsea()).save(photo)
    command = [sys.executable, str(ROOT / "examples/run_onnx.py"), str(folder / "clip-labels.onnx"), str(photo)]
    shown = subprocess.run([*command, str(tmp_path / "mask.png")], check=True, capture_output=True, text=True).stdout
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (300, 451) and set(np.unique(mask)) <= {1, 2, 3} and any(label in shown for label in LABELS)
    about = onnxruntime.InferenceSession(str(folder / "clip-labels.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == LABELS and json.loads(about["patch"]) == 16


@pytest.mark.slow
def test_the_example_sees_photos_as_people_do(folder: Path, tmp_path: Path) -> None:
    """Stored on its side, with EXIF that cannot be written anew; with a hole, which is white."""
    cat = skimage.data.chelsea()
    Image.fromarray(cat).save(tmp_path / "upright.png")
    make = struct.pack(">HHIf", 0x10F, 11, 1, 1.5) + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(cat)))
    stored.save(tmp_path / "stored.png", exif=b"MM\0*\0\0\0\x08\0\x02" + make + bytes(4))
    hole, white = np.dstack([cat, np.full(cat.shape[:2], 255, np.uint8)]), cat.copy()
    hole[:150, :, 3], white[:150] = 0, 255
    for name, pixels in (("hole.png", hole), ("white.png", white)):
        Image.fromarray(pixels).save(tmp_path / name)
    masks = {}
    for name in ("upright", "stored", "hole", "white"):
        command = [sys.executable, ROOT / "examples/run_onnx.py", folder / "clip-labels.onnx", tmp_path / f"{name}.png"]
        subprocess.run([*map(str, command), str(tmp_path / f"{name}.mask.png")], check=True)
        masks[name] = np.asarray(Image.open(tmp_path / f"{name}.mask.png"))
    assert (masks["stored"] == masks["upright"]).all() and (masks["hole"] == masks["white"]).all()
    assert masks["upright"].shape == (300, 451) and (masks["white"] != masks["upright"]).any()


def test_the_examples_mask_has_room_for_all_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a byte holds; the model is a stand-in that finds one label of each number."""
    names = [f"thing {i}" for i in range(300)]
    about = {"labels": names, "side": 32, "patch": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    found = np.arange(32 * 32, dtype=np.int32).reshape(1, 32, 32) % 301
    session = Mock(run=Mock(return_value=[found]))
    session.get_modelmeta.return_value.custom_metadata_map = {key: json.dumps(value) for key, value in about.items()}
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda model: session)
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", "m.onnx", str(tmp_path / "photo.png"), str(tmp_path / "m.png")])
    runpy.run_path(str(ROOT / "examples/run_onnx.py"))
    assert (np.asarray(Image.open(tmp_path / "m.png")) == found[0]).all()


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"model\.bin: .* \.onnx or \.pt2"):
        export(model, tmp_path / "model.bin")
    for labels, background in ((None, 0.5), (LABELS, 1.5)):
        with pytest.raises(ValueError, match=r"background .*; give a number in 0\.\.1, together with labels"):
            export(model, tmp_path / "model.onnx", labels, background=background)
    assert main(["export", str(tmp_path / "a.onnx"), "--labels", "cat", "cat"]) == 2
    assert "repeats label 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_exporter_of_someone_elses(folder: Path) -> None:
    """One function and one line in the table: the command writes by it."""
    found = json.loads((folder / "clip.mine").read_text())
    assert found == {"input": "pixels", "outputs": ["embedding", "regions", "soft"], "patch": 16}
