"""Draw the pictures of docs/how-it-works.md and docs/labels.md with the embedded model: python runs/figures.py [FOLDER]

The photos are scikit-image's samples, CC0 or in the public domain. This takes a minute on two cores and needs
`pip install -e '.[dev]'`.
Axes: B windows, C centers, P patches, E embedding, S side of a window in pixels.
"""

import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray
from PIL import Image
from skimage.segmentation import mark_boundaries

import segclip
from segclip.data.crops import Box, crop_photo
from segclip.data.superpixels import crop_superpixels, find_superpixels, patch_superpixels
from segclip.model.reconstruction import visible_count
from segclip.model.segclip import ImageOutput, SegCLIP
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.protocols.paper import region_owner, region_scores
from segclip.text.prompts import OPEN_TEMPLATES
from segclip.utils.files import atomic
from segclip.visualize import draw_side_by_side, palette

NAMES = ("chelsea", "coffee", "astronaut", "rocket")
CAPTIONS = ("a cat", "a cup of coffee", "an astronaut", "a rocket")
LABELS = ("coffee", "plate", "wooden table", "cat")
INCH = 2.3  # of a picture
ROWS = 10  # regions in the table of names


def square(name: str, side: int) -> UInt8[ndarray, "S S 3"]:
    """The centre of a sample photo, as the model sees it."""
    photo = getattr(skimage.data, name)()
    edge = min(photo.shape[:2])
    return crop_photo(photo, centre(photo, edge), side)


def centre(photo: UInt8[ndarray, "H W 3"], edge: int) -> Box:
    return Box((photo.shape[0] - edge) // 2, (photo.shape[1] - edge) // 2, edge, edge)


def pictures(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    size = (columns * INCH, rows * (INCH + 0.25))
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    axes = list(grid.flat)
    for one in axes:
        one.set_axis_off()
    return figure, axes


def save(figure: Figure, file: Path) -> None:
    options = {"format": "jpeg", "dpi": 110, "pil_kwargs": {"quality": 88, "optimize": True}}
    with atomic(file) as temporary:
        figure.savefig(temporary, **options)
    plt.close(figure)


def colours_of(regions: Int[ndarray, "rows columns"]) -> UInt8[ndarray, "rows columns 3"]:
    """A colour per center, never black."""
    return palette(2 + int(regions.max()))[1 + regions]


def enlarged(patches: ndarray, side: int) -> ndarray:
    """A value per patch -> a value per pixel."""
    scale = side // patches.shape[0]
    return patches.repeat(scale, 0).repeat(scale, 1)


def outlined(
    picture: UInt8[ndarray, "S S 3"], parts: Int[ndarray, "S S"], colour: tuple[float, float, float] = (1, 1, 1)
) -> ndarray:
    """The picture with lines between the parts."""
    return np.asarray(mark_boundaries(picture, parts, color=colour))


def draw_patches(photo: UInt8[ndarray, "S S 3"], patch: int, file: Path) -> None:
    """The tower's input: a photo and its patches."""
    figure, (whole, cut) = pictures(1, 2)
    whole.imshow(photo)
    whole.set_title(f"a window of {len(photo)} pixels")
    side = len(photo) // patch
    cells = photo.reshape(side, patch, side, patch, 3)
    gaps = np.pad(cells, ((0, 0), (1, 1), (0, 0), (1, 1), (0, 0)), constant_values=255)
    cut.imshow(gaps.reshape(side * (patch + 2), side * (patch + 2), 3))
    cut.set_title(f"{side} x {side} patches of {patch} pixels")
    save(figure, file)


def draw_assignment(photo: UInt8[ndarray, "S S 3"], output: ImageOutput, file: Path) -> None:
    """The soft assignment of the centers with the most patches, and the hard assignment."""
    side = round(output.soft.shape[2] ** 0.5)
    figure, (first, *axes, last) = pictures(3, 6)
    first.imshow(photo)
    first.set_title("the photo")
    softs = output.soft[0].unflatten(-1, (side, side)).numpy()
    hard = output.hard[0].argmax(dim=0).view(side, side).numpy()
    shares = np.bincount(hard.ravel(), minlength=len(softs)) / hard.size
    for one, number in zip(axes, np.argsort(-shares, kind="stable"), strict=False):
        one.imshow(softs[number], vmin=0, vmax=1, cmap="magma")
        one.set_title(f"center {number}, soft: {shares[number]:.0%}")
    last.imshow(outlined(enlarged(colours_of(hard), len(photo)), enlarged(hard, len(photo))))
    last.set_title("hard: one center per patch")
    save(figure, file)


def draw_names(
    model: SegCLIP, photo: UInt8[ndarray, "S S 3"], output: ImageOutput, text: torch.Tensor, file: Path
) -> None:
    """Regions against labels, and the resulting pixels."""
    scale = model.scale
    probability = (scale * F.normalize(output.regions[0], dim=-1) @ F.normalize(text, dim=-1).T).softmax(dim=-1).numpy()
    owner = region_owner(output, (len(photo), len(photo)))[0].numpy()
    best = region_scores(output, text, scale)[0].argmax(dim=-1).numpy()
    used, sizes = np.unique(owner, return_counts=True)
    used = used[np.argsort(-sizes, kind="stable")][:ROWS]
    figure, (first, table, last) = pictures(1, 3)
    figure.set_size_inches(3.6 * INCH, INCH + 0.6)
    first.imshow(outlined(colours_of(owner), owner))
    first.set_title("soft assignment, enlarged")
    table.set_axis_on()
    table.imshow(probability[used], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    table.set_xticks(range(len(LABELS)), LABELS, fontsize=8)
    table.set_yticks(range(len(used)), [f"center {number}" for number in used], fontsize=8)
    for (row, column), value in np.ndenumerate(probability[used]):
        table.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="k" if value < 0.6 else "w")
    table.set_title("largest regions x labels,\nsoftmax over labels")
    tint = palette(1 + len(LABELS))[1 + best[owner]]
    last.imshow((0.45 * photo + 0.55 * tint).astype(np.uint8))
    found = [LABELS[number] for number in np.unique(best[owner])]
    last.set_title(f"best label of each region:\n{', '.join(found)}")
    save(figure, file)


def draw_contrast(model: SegCLIP, photos: UInt8[ndarray, "B S S 3"], file: Path) -> None:
    """The contrastive loss's table: photos x captions."""
    image = F.normalize(model.encode_image(model.image.normalise(photos)).embedding, dim=-1)
    text = F.normalize(model.encode_text(model.tokenize(CAPTIONS)), dim=-1)
    probability = (model.scale * image @ text.T).softmax(dim=-1).numpy()
    figure, axes = pictures(len(photos), 1 + len(photos))
    figure.set_size_inches(5.5, 4.6)
    for row, photo in enumerate(photos):
        axes[row * (1 + len(photos))].imshow(photo)
        for column, caption in enumerate(CAPTIONS):
            cell, value = axes[row * (1 + len(photos)) + 1 + column], probability[row, column]
            cell.imshow([[value]], vmin=0, vmax=1, cmap="Blues")
            cell.text(0, 0, f"{value:.2f}", ha="center", va="center", color="k" if value < 0.6 else "w")
            if row == 0:
                cell.set_title(caption)
    save(figure, file)


def draw_superpixels(name: str, side: int, patch: int, output: ImageOutput, file: Path) -> None:
    """What the superpixel loss compares: superpixels per patch, and the assignment."""
    whole = getattr(skimage.data, name)()
    box = centre(whole, min(whole.shape[:2]))
    ids = crop_superpixels(find_superpixels(whole), (box.top, box.left, box.height, box.width), side)
    photo, per_patch = crop_photo(whole, box, side), patch_superpixels(ids, patch)
    drawn = np.random.default_rng(3).integers(40, 256, (1 + int(ids.max()), 3)).astype(np.uint8)
    hard = output.hard[0].argmax(dim=0).view(side // patch, side // patch).numpy()
    figure, axes = pictures(1, 3)
    borders = enlarged(per_patch, side)
    gathered = outlined(enlarged(colours_of(hard), side), borders)
    shown = outlined(photo, ids, (1, 1, 0)), enlarged(drawn[per_patch], side), gathered
    for one, picture in zip(axes, shown, strict=True):
        one.imshow(picture)
    axes[0].set_title("superpixels of the photo")
    axes[1].set_title("an id per patch")
    axes[2].set_title("centers; lines: superpixels")
    save(figure, file)


def draw_masked(model: SegCLIP, photo: UInt8[ndarray, "S S 3"], file: Path) -> None:
    """The input of the masked branch: a quarter of the patches, gathered by the same centers."""
    side = len(photo) // model.config.image.patch
    order = torch.rand(1, side * side, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    keep = order[:, : visible_count(side * side)]
    grouping = model.image.grouping(model.image.encode_patches(model.image.normalise(photo)[None], keep=keep))
    seen, centers = np.zeros(side * side, bool), np.zeros(side * side, int)
    seen[keep[0]], centers[keep[0]] = True, grouping.hard[0].argmax(dim=0).numpy()
    mask = enlarged(seen.reshape(side, side), len(photo))[..., None]
    regions = enlarged(colours_of(centers.reshape(side, side)), len(photo))
    figure, axes = pictures(1, 3)
    for one, picture in zip(axes, (photo, np.where(mask, photo, 225), np.where(mask, regions, 225)), strict=True):
        one.imshow(picture.astype(np.uint8))
    axes[0].set_title("to predict: the hidden pixels")
    axes[1].set_title(f"given: {keep.shape[1]} of {side * side} patches")
    axes[2].set_title("their centers")
    save(figure, file)


def draw_labels(file: Path) -> None:
    """The same photo, asked in several ways."""
    photo, segmenter = skimage.data.coffee(), segclip.Segmenter("mini")
    (encoded,) = segmenter.encode([photo])
    ways = {
        "cup": (["cup"], "auto"),
        "cup, table": (["cup", "table"], "auto"),
        "cup, spoon, table; no background": (["cup", "spoon", "table"], None),
        "cup|mug, saucer|plate, spoon, table|wood": (["cup|mug", "saucer|plate", "spoon", "table|wood"], "auto"),
        "cup, dog, car": (["cup", "dog", "car"], "auto"),
    }
    drawn = [("the photo", Image.fromarray(photo))]
    for title, (labels, background) in ways.items():
        drawn.append((title, segmenter.label(encoded, labels, background=background).overlay()))
    sheet = draw_side_by_side(drawn, side=400)
    with atomic(file) as temporary:
        sheet.save(temporary, "JPEG", quality=85, optimize=True)


@torch.inference_mode()
def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams["axes.titlesize"] = 8
    model = segclip.load("mini")
    side, patch = model.config.image.side, model.config.image.patch
    photos = np.stack([square(name, side) for name in NAMES])
    coffee = photos[NAMES.index("coffee")]
    output = model.encode_image(model.image.normalise(coffee)[None])
    text = LabelEmbedder(model)(LABELS, OPEN_TEMPLATES)
    draw_patches(coffee, patch, folder / "patches.jpg")
    draw_assignment(coffee, output, folder / "assignment.jpg")
    draw_names(model, coffee, output, text, folder / "names.jpg")
    draw_contrast(model, photos, folder / "contrastive.jpg")
    draw_superpixels("coffee", side, patch, output, folder / "superpixels.jpg")
    draw_masked(model, coffee, folder / "masked.jpg")
    draw_labels(folder / "labels.jpg")


if __name__ == "__main__":
    main()
