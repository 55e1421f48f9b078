"""Validation of a run: a sheet of a few photos with their regions and masks, and the mIoU on photos with masks."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image
from skimage.segmentation import mark_boundaries

from segclip.data.crops import Box, crop_photo
from segclip.data.shards import SampleError, Shards
from segclip.evaluate.datasets.benchmark import Benchmark
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.evaluator import Evaluator, cut_batches, words_of
from segclip.evaluate.metrics import Confusion
from segclip.model.segclip import SegCLIP
from segclip.segment.segmenter import Segmenter
from segclip.train.config import TrainConfig
from segclip.utils.failures import Failed
from segclip.utils.files import atomic
from segclip.visualize import palette

log = logging.getLogger(__name__)
PHOTOS, GAP = 6, 6  # rows of a sheet; pixels between pictures


class Validation:
    """What a run is validated with: some photos of its data, and where the recipe names one, a validation set."""

    def __init__(self, config: TrainConfig, shards: Shards, out: Path) -> None:
        """Read it; raises ValueError where no photo can be read, or for a set that cannot be used."""
        assert config.model
        self.photos, self.captions = fixed_photos(shards, config.model.image.side)
        self.benchmark = open_folder(Path(config.validation)) if config.validation else None
        self.folder = out / "sheets"

    def write_sheet(self, model: SegCLIP, step: int) -> None:
        """See the function; the sheet is called by its step."""
        self.folder.mkdir(exist_ok=True)
        write_sheet(model, self.photos, self.captions, self.folder / f"{step:08d}.png")

    def miou(self, model: SegCLIP) -> float | None:
        """On the validation set; None where there is none."""
        return None if self.benchmark is None else validate(model, self.benchmark)


def fixed_photos(shards: Shards, side: int) -> tuple[UInt8[np.ndarray, "N S S 3"], list[str]]:
    """The centres of the first photos, and a caption of each."""
    photos, captions = [], []
    for number in range(min(len(shards), 4 * PHOTOS)):
        try:
            sample = shards[number]
            photo = sample.photo()
        except SampleError:
            continue
        edge = min(photo.shape[:2])
        box = Box((photo.shape[0] - edge) // 2, (photo.shape[1] - edge) // 2, edge, edge)
        photos.append(crop_photo(photo, box, side))
        captions.append(sample.captions[0])
        if len(photos) == PHOTOS:
            break
    if not photos:
        raise ValueError(f"{shards.address}: no photo can be read of the first {4 * PHOTOS}; make the shards anew")
    return np.stack(photos), captions


@torch.inference_mode()
def write_sheet(model: SegCLIP, photos: UInt8[np.ndarray, "N S S 3"], captions: Sequence[str], file: Path) -> None:
    """A PNG with a row a photo: it, its regions (a colour a center), and where it fits its own caption best.

    The last picture is dark where another photo's caption fits the region better.
    """
    device = model.logit_scale.device
    output = model.encode_image(model.image.normalise(photos).to(device))
    text = F.normalize(model.encode_text(model.tokenize(captions).to(device)), dim=-1)
    similarity = F.normalize(output.regions, dim=-1) @ text.T  # photo, center, caption
    own = similarity.argmax(dim=-1) == torch.arange(len(photos), device=device)[:, None]
    centers = output.soft.argmax(dim=1)
    side = round(centers.shape[1] ** 0.5)
    rows = []
    for photo, center, fits in zip(photos, centers.cpu(), own.cpu(), strict=True):
        scale = len(photo) // side
        regions = center.view(side, side).numpy().repeat(scale, 0).repeat(scale, 1)
        regions = np.pad(regions, [(0, n - m) for n, m in zip(photo.shape, regions.shape, strict=False)], mode="edge")
        rows.append(_row(photo, regions, fits.numpy()[regions]))
    with atomic(file) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, "PNG")


def _row(photo: UInt8[np.ndarray, "S S 3"], regions: Int[np.ndarray, "S S"], own: np.ndarray) -> np.ndarray:
    colours = palette(1 + int(regions.max()) + 1)[1:]
    drawn = np.asarray(255 * mark_boundaries(colours[regions], regions, color=(1, 1, 1)), np.uint8)
    fitting = np.where(own[..., None], photo, photo // 5)
    pictures = [np.pad(one, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for one in (photo, drawn, fitting)]
    return np.concatenate(pictures, axis=1)


def validate(model: SegCLIP, benchmark: Benchmark) -> float:
    """mIoU of the paper's protocol with its default background threshold, or without where the set has none.

    Photos and masks that cannot be read are left out, and named in the log.

    Raises:
        ValueError: none can be read.
    """
    failed: list[Failed] = []
    evaluator = Evaluator(Segmenter(model, "paper"), benchmark, words_of(benchmark))
    confusion = Confusion(len(benchmark.names))
    for block in evaluator.encode(cut_batches(benchmark.pairs), failed):
        for _, encoded, truth in block:
            confusion.add(truth, evaluator.label(encoded))
    for one in failed:
        log.warning("left out of the validation: %s", one.reason)
    if len(failed) == len(benchmark.pairs):
        raise ValueError(f"none of the photos and masks of the validation set can be read, such as {failed[0].reason}")
    return confusion.miou()
