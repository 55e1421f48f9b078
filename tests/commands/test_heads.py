"""A plain CLIP, made here at random, through every command, with heads, protocols and k-means."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from helpers.benchmark_files import write_folder
from helpers.dense_export_script import LABELS
from helpers.pixels import normalise
from helpers.small_runs import run_script
from PIL import Image

from segclip.checkpoints.loading import load
from segclip.checkpoints.variants import vary
from segclip.cli import main
from segclip.model.dense import HEADS
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.protocols import PROTOCOLS
from segclip.segment.protocols.paper import paper_scores
from segclip.segment.regions import gather
from segclip.segment.segmenter import Segmenter
from segclip.text.prompts import PAPER_TEMPLATES
from segclip.web.service import open_service

PHOTO = skimage.data.coffee()[::4, ::3]  # 100x200


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / "coffee.png")
    return folder


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_head_segments_by_each_protocol(plain_clip: Path, protocol: str) -> None:
    model, maps = load(plain_clip, "cpu"), {}
    for head in HEADS:
        found = Segmenter(model, protocol, head=head).segment(PHOTO, LABELS, background=None, presence=None)
        assert found.labels.shape == PHOTO.shape[:2] and set(np.unique(found.labels)) <= {1, 2, 3}
        maps[head] = found.scores.tobytes()
    assert len(set(maps.values())) == len(HEADS), "each in its own way"


def test_segment_takes_a_head(
    plain_clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {}
    for head in ("naclip", "sclip"):
        options = ["--background", "none", "--presence", "none", "--head", head, "--out", str(tmp_path / head)]
        assert main(["segment", str(photos), "--labels", *LABELS, "--model", str(plain_clip), *options]) == 0
        masks[head] = np.asarray(Image.open(tmp_path / head / "coffee.mask.png"))
        expected = Segmenter(plain_clip, head=head).segment(PHOTO, LABELS, background=None, presence=None)
        assert (masks[head] == expected.labels).all()
    assert (masks["naclip"] != masks["sclip"]).any()
    command = ["segment", str(photos), "--labels", "cup", "--out", str(tmp_path)]
    for options, why in (
        (["--head", "sclip"], "head 'sclip': this model's regions come of its centers"),
        (["--head", "slip", "--model", str(plain_clip)], "head 'slip'; known are naclip,"),
    ):
        capsys.readouterr()
        assert main([*command, *options]) == 2
        assert why in capsys.readouterr().err


def test_evaluate_takes_and_records_a_head(
    plain_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = write_folder(tmp_path / "set", (0, 1), (1, 2)), tmp_path / "r.json"
    command = ["evaluate", "folder", "--root", str(root), "--model", str(plain_clip), "--protocol", "paper"]
    assert main([*command, "--head", "clearclip", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["head"] == "clearclip" and 0 < result["miou"] < 1
    assert "clip.safetensors with head clearclip; protocol paper" in capsys.readouterr().out
    assert main([*command, "--json", str(tmp_path / "plain.json")]) == 0
    assert "head" not in json.loads((tmp_path / "plain.json").read_text())


def test_annotate_goes_on_with_the_same_head_alone(
    plain_clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["annotate", str(photos), "--labels", *LABELS, "--model", str(plain_clip), "--out", str(tmp_path / "out")]
    command += ["--background", "none", "--presence", "none"]
    assert main([*command, "--head", "maskclip"]) == 0
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert coco["info"]["head"] == "maskclip" and coco["annotations"]
    assert main(command) == 2 and "another --out" in capsys.readouterr().err


def test_the_page_takes_a_head(plain_clip: Path) -> None:
    service = open_service([str(plain_clip)], "cpu", head="qk")
    assert {s.model.config.head for s in service._segmenters["clip.safetensors"].values()} == {"qk"}
    with pytest.raises(ValueError, match="only a CLIP without such"):
        open_service(["mini"], "cpu", head="qk")


def test_regions_are_k_means_where_each_patch_is_a_region(
    plain_clip: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "segclip.commands.regions.gather", lambda model, *_: seen.append(model.config) or gather(model, PHOTO, LABELS)
    )
    command = ["regions", str(photos), "--out", str(tmp_path / "out"), "--model", str(plain_clip)]
    assert main(command) == main([*command, "--grouping", "k-means", "--centers", "3"]) == 0
    mini = ["--model", "mini", "--grouping", "refined"]
    assert main([*command[:4], *mini]) == 0
    assert main([*command[:4], "--model", "mini", "--grouping", "k-means", "--centers", "5"]) == 0
    assert [(config.grouping, config.centers) for config in seen[:2]] == [("k-means", 4), ("k-means", 3)]
    assert [(config.grouping, config.centers) for config in seen[2:]] == [("refined", 48), ("k-means", 5)]
    assert Image.open(tmp_path / "out" / "coffee.regions.png").width > 200


@pytest.fixture(scope="module")
def exported(plain_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    run_script("dense_export_script.py", str(plain_clip), str(folder))
    return folder


@pytest.mark.slow
def test_an_exported_label_map_is_the_models(plain_clip: Path, exported: Path) -> None:
    model = vary(load(plain_clip, "cpu"), head="sclip")
    session = onnxruntime.InferenceSession(str(exported / "labels.onnx"))
    for size in ((64, 64), (80, 48)):
        pixels = normalised(size)
        found = np.asarray(session.run(None, {"pixels": pixels.numpy()})[0])
        with torch.inference_mode():
            embeds = LabelEmbedder(model)(LABELS, PAPER_TEMPLATES)
            scores = paper_scores(model.encode_image(pixels), embeds, model.scale, (size[1], size[0]))
        expected = scores.argmax(dim=1).numpy() + 1
        assert len(np.unique(found)) > 1 and (found == expected).mean() > 0.98  # a patch is up to 1/15 of a photo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "variant"),
    [("proxy.onnx", {"head": "proxy"}), ("k-means.pt2", {"grouping": "k-means", "centers": 3})],
)
def test_exported_regions_are_the_models(file: str, variant: dict, plain_clip: Path, exported: Path) -> None:
    model, pixels = vary(load(plain_clip, "cpu"), **variant), normalised((80, 64))
    with torch.inference_mode():
        output = model.encode_image(pixels)
        if file.endswith(".onnx"):
            found = onnxruntime.InferenceSession(str(exported / file)).run(None, {"pixels": pixels.numpy()})
        else:
            found = torch.export.load(exported / file).module()(pixels)
    for own, expected in zip(found, (output.embedding, output.regions, output.soft), strict=True):
        np.testing.assert_allclose(np.asarray(own), expected, atol=1e-4)


def normalised(size: tuple[int, int]) -> torch.Tensor:
    photos = [np.asarray(Image.fromarray(photo).resize(size)) for photo in (PHOTO, PHOTO[::-1], PHOTO[:50])]
    return normalise(np.stack(photos))
