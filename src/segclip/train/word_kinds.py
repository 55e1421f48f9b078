"""What common words are kinds of: captions say skier, puppy or couch, and people ask for person, dog or furniture.

By general knowledge, for everyday words of captions; not chosen on photos or for a benchmark. Kinds have kinds: a puppy
is a dog, and so an animal.
"""

# fmt: off
_KINDS = {
    "person": """man woman boy girl child kid lady guy gentleman player batter catcher pitcher umpire skier surfer
        skateboarder snowboarder boarder skater rider biker bicyclist cyclist motorcyclist runner swimmer
        diver hiker climber dancer toddler baby adult teenager teen youth someone police officer policeman
        soldier fireman chef waiter worker farmer fisherman cowboy driver pilot pedestrian passenger
        tourist shopper student teacher doctor nurse musician performer clown actor athlete ballplayer
        team couple crowd family friend mother father son daughter bride groom fan spectator""",
    "dog": """puppy hound terrier retriever spaniel poodle bulldog collie husky dalmatian beagle corgi dachshund
        chihuahua pug rottweiler doberman malamute samoyed mastiff""",
    "cat": "kitten kitty tabby feline",
    "horse": "foal mare pony colt stallion",
    "cow": "bull cattle calf ox steer",
    "sheep": "lamb ram",
    "bear": "panda",
    "bird": """duck eagle parrot penguin owl flamingo seagull gull pigeon swan goose chicken hen rooster turkey
        ostrich pelican peacock heron crow hawk robin sparrow hummingbird toucan macaw vulture stork
        woodpecker finch ibis emu cockatoo quail""",
    "insect": "butterfly bee ant beetle dragonfly ladybug moth grasshopper mosquito cockroach",
    "fish": "shark goldfish ray eel salmon tuna clownfish",
    "animal": """dog cat horse cow sheep bear bird insect fish elephant giraffe zebra lion tiger leopard cheetah
        cougar fox wolf deer rabbit monkey ape gorilla squirrel pig goat kangaroo koala bison buffalo
        rhino hippo dolphin whale snake turtle frog lizard crocodile alligator spider lobster crab camel
        donkey antelope gazelle moose elk reindeer hedgehog otter seal walrus raccoon rat hamster""",
    "car": "taxi cab sedan jeep suv convertible minivan limousine",
    "airplane": "plane jet aeroplane airliner biplane jetliner",
    "motorcycle": "motorbike scooter moped",
    "bicycle": "bike",
    "boat": "ship canoe kayak sailboat ferry yacht gondola rowboat",
    "bus": "minibus",
    "train": "locomotive tram",
    "truck": "lorry",
    "vehicle": """car truck bus train van motorcycle bicycle boat airplane helicopter tractor carriage cart
        ambulance tank wagon""",
    "chair": "armchair recliner stool",
    "sofa": "couch loveseat",
    "couch": "sofa loveseat",
    "table": "desk",
    "furniture": "chair table sofa bed desk bench cabinet shelf dresser bookcase",
    "tv": "television",
    "television": "tv",
    "phone": "telephone cellphone",
    "computer": "laptop",
    "racket": "racquet",
    "racquet": "racket",
    "cup": "mug teacup",
    "donut": "doughnut",
    "doughnut": "donut",
    "fruit": """apple banana strawberry grape lemon pear pineapple watermelon melon peach mango kiwi lime
        blueberry cherry berry""",
    "vegetable": "broccoli carrot tomato potato pepper lettuce onion cucumber cabbage corn bean mushroom",
    "food": """fruit vegetable pizza sandwich cake donut salad bread soup burger hamburger meat fries rice noodle
        pasta meal sushi egg cheese cookie pancake pastry dessert chocolate""",
    "flower": "rose tulip daisy sunflower lily orchid blossom bouquet lotus",
    "tree": "palm pine oak",
    "plant": "tree flower bush grass shrub cactus fern",
    "water": "ocean sea lake river pond stream wave waterfall",
    "building": "house church tower skyscraper barn castle temple cathedral palace mosque cabin",
    "road": "street highway",
    "field": "pasture meadow",
    "bag": "handbag backpack purse suitcase",
    "luggage": "suitcase",
    "suitcase": "luggage",
    "hat": "cap helmet",
    "clothing": "shirt jacket dress coat pants jeans skirt suit sweater shorts uniform",
}
# What stands in a photo beside a "hot dog" is no dog.
NOT_THEIR_LAST_WORD = {"hot dog", "teddy bear", "computer mouse", "home plate", "baseball bat", "cell phone"}
# fmt: on
_ABOVE: dict[str, set[str]] = {}
for _kind, _words in _KINDS.items():
    for _word in _words.split():
        _ABOVE.setdefault(_word, set()).add(_kind)


def kinds_of(word: str) -> set[str]:
    """All that a word is a kind of, without itself; a compound is a kind of its last word too."""
    found: set[str] = set()
    waiting = [word]
    while waiting:
        name = waiting.pop()
        above = set(_ABOVE.get(name, ()))
        if " " in name and name not in NOT_THEIR_LAST_WORD:
            above.add(name.split()[-1])
        waiting += above - found
        found |= above
    return found - {word}
