"""Reference words: what may be in a photo, whatever the labels are."""

# How near a photo is to words in general, so that a label that is no nearer can be said to be absent. Chosen by general
# knowledge, not on photos or for a benchmark.
# fmt: off
REFERENCE_WORDS = (
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
