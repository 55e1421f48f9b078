"""Words: prompt templates, contrast words, and what a list of labels must be."""

from collections.abc import Sequence

BACKGROUND = "background"

PAPER_TEMPLATES = ("a photo of a {}.",)  # arXiv 2211.14813, evaluation protocol
OPEN_TEMPLATES = ("a {}",)  # one: each further template embeds all contrast words once more

# What fills photos besides the labels that were asked for. These words compete with the labels, and what they win is
# reported as background. Chosen by general knowledge, on no photo and for no benchmark; whole things and stuff only, as
# a part ("wheel", "face") would take pixels from the label it belongs to.
# fmt: off
CONTRAST_WORDS = (
    # sky, land and water
    "sky", "cloud", "sun", "grass", "lawn", "field", "soil", "mud", "sand", "beach", "rock", "gravel", "mountain",
    "hill", "cliff", "desert", "forest", "bush", "tree", "palm tree", "flower", "leaves", "snow", "ice", "water",
    "sea", "river", "lake", "waves", "waterfall", "fog", "fire", "smoke",
    # built
    "road", "sidewalk", "parking lot", "dirt path", "railway track", "railway platform", "bridge", "tunnel",
    "building", "house", "skyscraper", "tower", "church", "castle", "barn", "tent", "roof", "brick wall",
    "stone wall", "wall", "fence", "railing", "stairs", "pole", "street light", "traffic light", "traffic sign",
    "billboard", "fountain", "statue", "swimming pool", "pier", "stadium", "playground",
    # rooms
    "floor", "wooden floor", "tiles", "carpet", "ceiling", "window", "door", "curtain", "window blind", "mirror",
    "picture frame", "poster", "shelf", "cabinet", "drawer", "wardrobe", "counter", "table", "desk", "chair", "bench",
    "sofa", "bed", "pillow", "blanket", "towel", "lamp", "candle", "fireplace", "sink", "bathtub", "toilet", "shower",
    "stove", "oven", "refrigerator", "microwave oven", "washing machine", "fan",
    # people and animals
    "person", "crowd of people", "baby", "cat", "dog", "horse", "cow", "sheep", "goat", "pig", "rabbit", "mouse",
    "bear", "elephant", "lion", "zebra", "giraffe", "deer", "monkey", "squirrel", "bird", "chicken", "duck", "fish",
    "snake", "turtle", "frog", "insect", "butterfly",
    # vehicles
    "car", "truck", "bus", "van", "train", "tram", "bicycle", "motorcycle", "boat", "sailing boat", "ship",
    "airplane", "helicopter", "tractor", "shopping cart", "stroller",
    # food
    "plate of food", "bread", "sandwich", "pizza", "cake", "donut", "cookie", "fruit", "apple", "banana", "orange",
    "vegetable", "carrot", "salad", "soup", "noodles", "rice", "meat", "egg", "cheese", "ice cream", "chocolate",
    "cup of coffee", "glass of wine", "beer",
    # things
    "plate", "bowl", "cup", "bottle", "vase", "pot", "pan", "fork", "knife", "spoon", "basket", "box", "bag",
    "suitcase", "umbrella", "book", "newspaper", "paper", "pen", "scissors", "clock", "telephone", "camera", "laptop",
    "keyboard", "computer monitor", "television", "radio", "cable", "remote control", "toy", "teddy bear", "balloon",
    "ball", "kite", "skateboard", "surfboard", "skis", "tennis racket", "baseball bat", "guitar", "piano",
    "potted plant", "tool", "rope", "ladder", "bucket", "barrel", "trash can", "flag", "text",
    # clothes
    "shirt", "jacket", "dress", "trousers", "shoes", "hat", "tie", "helmet", "glasses", "watch", "jewelry", "cloth",
)
# fmt: on


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without white space around them.

    Raises:
        ValueError: no list, an empty list, an empty or repeated label (in any case of letters), or "background".
    """
    if isinstance(labels, str):
        raise ValueError(f"labels {labels[:50]!r} is one text; give a list of labels, for example [{labels[:50]!r}]")
    if not len(labels):
        raise ValueError("no labels; give at least one, for example ['cat']")
    seen: dict[str, int] = {}
    for position, label in enumerate(labels, start=1):
        if not isinstance(label, str):
            raise ValueError(f"label {position} is {label!r}, a {type(label).__name__}; expected a text")
        if not (key := label.strip().casefold()):
            raise ValueError(f"label {position} of {len(labels)} is empty; remove it or name something")
        if key == BACKGROUND:
            raise ValueError(
                f"label {position} is {label!r}, which is always there as label 0; remove it (the option `background` "
                "decides how it is found)"
            )
        if key in seen:
            raise ValueError(f"label {position}, {label.strip()!r}, repeats label {seen[key]}; remove one of them")
        seen[key] = position
    return tuple(label.strip() for label in labels)


def singular(word: str) -> str:
    """A name in lower case and the singular, by its ending: "Butterflies" -> butterfly."""
    word = " ".join(word.lower().split())
    for ending, instead in (("ies", "y"), ("ses", "s"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
