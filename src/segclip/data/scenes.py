"""Generated scenes: things on a ground, captions that name them, and a mask, to train and test on without any data.

Each class has a colour, a texture and, if it is a thing, a shape of its own. Photo number n of a seed is always the
same, and no other number or seed has it. Axes: S side of a scene in pixels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image

from segclip.utils.files import atomic

LAST = "classes.json"  # the file that is written last: where it is, the scenes are whole
SIDE = 64  # the least that `segclip prepare` takes
TRIES = 50  # positions tried for a further thing before the scene goes without it
GAP = 2  # pixels between two things, at least
SMALLEST, LARGEST = 0.2, (0.36, 0.29, 0.24)  # radius of one, two, three things, in sides of the scene
CONTRAST, LIGHT, NOISE = 22.0, 15.0, 8.0  # grey levels: of textures, of whole things, of every pixel (deviation)

Plane = Float[ndarray, "S S"]
Texture = Callable[[Plane, Plane], Plane]  # of x and y in pixels, about -1 to 1
Shape = Callable[[Plane, Plane], Bool[ndarray, "S S"]]  # of x and y in units of the radius, past which it is cut off


def _polygon(corners: int, inner: float) -> Shape:
    """A regular polygon around a circle of radius `inner`."""
    half = np.pi / corners
    return lambda x, y: np.hypot(x, y) * np.cos(np.arctan2(y, x) % (2 * half) - half) < inner


def _plain(x: Plane, y: Plane) -> Plane:
    return np.zeros_like(x)


def _checks(x: Plane, y: Plane) -> Plane:
    return np.sign(np.sin(0.8 * x) * np.sin(0.8 * y))


def _cross(x: Plane, y: Plane) -> Bool[ndarray, "S S"]:
    return np.minimum(abs(x), abs(y)) < 0.45


def _star(x: Plane, y: Plane) -> Bool[ndarray, "S S"]:
    return np.hypot(x, y) < 0.78 + 0.22 * np.cos(5 * np.arctan2(y, x))


# Colour (RGB, 0-255) and texture; of things the shape, too.
GROUNDS: dict[str, tuple[tuple[int, int, int], Texture]] = {
    "grass": ((60, 140, 50), lambda x, y: np.sin(2.4 * x + np.sin(0.5 * y))),
    "sand": ((205, 180, 125), lambda x, y: np.sin(0.9 * (x + y)) * np.sin(0.7 * (x - y))),
    "water": ((50, 110, 190), lambda x, y: np.sin(1.3 * y + 1.5 * np.sin(0.2 * x))),
    "snow": ((235, 240, 245), lambda x, y: 0.5 * np.sin(0.25 * x) * np.sin(0.3 * y)),
}
THINGS: dict[str, tuple[tuple[int, int, int], Texture, Shape]] = {
    "red circle": ((205, 40, 40), _plain, lambda x, y: np.hypot(x, y) < 1),
    "yellow triangle": ((240, 215, 40), lambda x, y: np.sign(np.sin(x)), _polygon(3, 0.65)),
    "purple square": ((125, 50, 160), _checks, _polygon(4, 0.75)),
    "black cross": ((30, 30, 35), _plain, _cross),
    "orange hexagon": ((240, 130, 30), lambda x, y: np.sign(np.sin(y)), _polygon(6, 0.87)),
    "pink star": ((240, 140, 190), _plain, _star),
}
CLASSES = (*GROUNDS, *THINGS)  # a class's position here is its index in the masks
TEMPLATES = (
    "a photo of {things} on {ground}.",
    "{things} on {ground}",
    "there is {things} on the {ground}.",
    "{ground} with {things} on it",
    "a picture of {ground} and {things}",
)


@dataclass(frozen=True)
class Scene:
    """A generated photo and what is in it.

    Attributes:
        photo: RGB uint8 (S,S,3), 0-255.
        captions: one for each of TEMPLATES, each naming all that is in the photo.
        mask: (S,S), index in CLASSES of each pixel.
    """

    photo: UInt8[ndarray, "S S 3"]
    captions: tuple[str, ...]
    mask: UInt8[ndarray, "S S"]


def make_scene(seed: int, number: int) -> Scene:
    """Scene `number` of a seed: one to three different things, none hiding another, on a ground."""
    generator = np.random.default_rng((seed, number))
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    ground = generator.choice(list(GROUNDS))
    photo = _paint(*GROUNDS[ground], x, y, generator)
    mask = np.full((SIDE, SIDE), CLASSES.index(ground), np.uint8)
    things, count = [], generator.integers(1, len(LARGEST) + 1)
    for thing in generator.permutation(list(THINGS))[:count]:
        colour, texture, shape = THINGS[thing]
        where = _draw_mask(shape, x, y, LARGEST[count - 1], mask >= len(GROUNDS), generator)
        if where is not None:
            photo[where] = _paint(colour, texture, x, y, generator)[where]
            mask[where] = CLASSES.index(thing)
            things.append(f"a {thing}" if thing[0] not in "aeiou" else f"an {thing}")
    photo = (photo + generator.normal(0, NOISE, photo.shape)).clip(0, 255).astype(np.uint8)
    named = " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
    return Scene(photo, tuple(template.format(things=named, ground=ground) for template in TEMPLATES), mask)


def write_scenes(folder: Path, count: int, seed: int) -> Path:
    """Write the first `count` scenes of a seed as photos with captions and masks.

    The folder gets `pairs.jsonl`, which `segclip prepare` reads, and `images/`, `masks/` and `classes.json`, which
    `segclip evaluate folder` reads.

    Returns:
        The folder.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as pairs:
        for number in range(count):
            scene, file = make_scene(seed, number), f"{number:06}.png"
            Image.fromarray(scene.photo).save(folder / "images" / file)
            Image.fromarray(scene.mask).save(folder / "masks" / file)
            pairs.write(json.dumps({"image": f"images/{file}", "captions": scene.captions}) + "\n")
    classes = {"classes": dict(enumerate(CLASSES)), "ignore_index": 255}
    with atomic(folder / LAST) as last:
        last.write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")
    return folder


def _paint(
    colour: tuple[int, int, int], texture: Texture, x: Plane, y: Plane, generator: np.random.Generator
) -> Float[ndarray, "S S 3"]:
    """A whole plane of a class; its light and where its texture begins are drawn anew."""
    right, down = generator.uniform(0, SIDE, 2)
    wave = CONTRAST * texture(x + right, y + down) + generator.uniform(-LIGHT, LIGHT)
    return np.array(colour) + wave[..., None]


def _draw_mask(
    shape: Shape, x: Plane, y: Plane, largest: float, taken: Bool[ndarray, "S S"], generator: np.random.Generator
) -> Bool[ndarray, "S S"] | None:
    """Where a thing is: turned at random, wholly inside, apart from what is there; None where there was no room."""
    for _ in range(TRIES):
        radius = SIDE * generator.uniform(SMALLEST, largest)
        column, row = generator.uniform(radius, SIDE - radius, 2)
        turn = generator.uniform(0, 2 * np.pi)
        u, v = (x - column) / radius, (y - row) / radius
        if not (taken & (np.hypot(u, v) < 1 + GAP / radius)).any():
            turned = shape(u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn))
            return turned & (np.hypot(u, v) < 1)
    return None
