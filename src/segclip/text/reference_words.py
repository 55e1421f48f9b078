"""Reference words: what may be in a photo, whatever the labels are."""

# How near a photo is to words in general, so that a label that is no nearer can be said to be absent. Chosen by general
# knowledge, not on photos or for a benchmark.
# fmt: off
REFERENCE_WORDS = (
    # sky, land and water
    "sky", "lawn", "sand", "mountain", "forest", "flower", "water", "waves", "smoke",
    # built
    "dirt path", "tunnel", "tower", "tent", "wall", "pole", "billboard", "pier",
    # rooms
    "wooden floor", "window", "mirror", "cabinet", "table", "sofa", "towel", "sink", "stove", "washing machine",
    # people and animals
    "baby", "cow", "rabbit", "lion", "monkey", "duck", "frog",
    # vehicles
    "truck", "tram", "sailing boat", "tractor",
    # food
    "bread", "donut", "banana", "salad", "meat", "chocolate",
    # things
    "plate", "vase", "knife", "bag", "newspaper", "clock", "keyboard", "cable", "balloon", "surfboard", "guitar",
    "rope", "trash can",
    # clothes
    "jacket", "hat", "watch",
)
# fmt: on
