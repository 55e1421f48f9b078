"""The words of captions: what things are said to be in a photo, for the losses that let words compete.

"A skier in the snow near two fire hydrants" holds skier and what it is a kind of, person; snow; and fire hydrant.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from segclip.losses import weighted_losses
from segclip.train.config import TrainConfig
from segclip.train.word_kinds import NOT_THEIR_LAST_WORD, kinds_of
from segclip.utils.optional import require

SEEN = 8  # photos that a word must be said of to be in the vocabulary
# Photos that a pair of words is said of, at all and of those with its rarer word.
COMPOUND_SEEN, COMPOUND_SHARE = 20, 0.15
PLURALS = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "glasses": "glasses",
    "pants": "pants",
    "shorts": "shorts",
}
# Nouns to a lexicon, but no things that could be pointed at; and words that are seldom meant as the nouns they can be.
_NO_THINGS = """
    a an the of in on at to with and or is are be by for from as it its up down out over under next near this
    that these those there all each into off through being has have had having during beside between across
    along while when where which who what his her hers him them they their he she we you your our us my me not
    no so than then very one two three four five six seven eight nine ten some several many few couple group
    bunch set lot pair piece kind type sort top front side back middle inside outside around behind other
    another end edge part both left right bottom corner center area place background foreground distance row
    line pile number half base item object thing something stuff way close view photo photograph picture image
    shot scene display day time night morning evening afternoon weather game match white black red blue green
    brown yellow pink gray grey purple silver gold golden color colour young old small little long high low dark
    wet short giant lush wild public double male female cold warm dry bright same fall full empty open large big
    tall wooden modern plain single pretty cute busy round flat clean dirty fresh various stand walk hold play
    watch look ride hit take run pose swing catch throw fly smile lay lie drive jump drink show cut cross step
    past above sit wait eat enjoy work sleep stop stretch rest lean talk fill see get make go use do try turn
    let travel fight slide reach return stick will can may like help hang cook push pull cover prepare riding
    covered playing wearing preparing beautiful colorful older lit ripe snowy body head face hand arm leg foot
    eye mouth hair neck lap trick air country commercial professional industrial
"""
NO_THINGS = frozenset(_NO_THINGS.split())
# Things whose names end as those of actions do.
_IN_ING = """
    building wing ring king string ceiling clothing painting railing pudding frosting icing crossing wedding
"""
_THINGS_IN_ING = frozenset(_IN_ING.split())


@dataclass(frozen=True)
class CaptionWords:
    """The words of photos' captions.

    Attributes:
        vocabulary: each word that enough photos are said to show.
        held: for each photo, the numbers of its words in the vocabulary, each once.
    """

    vocabulary: tuple[str, ...]
    held: list[list[int]]


def find_words(captions: Sequence[Sequence[str]], seen: int = SEEN) -> CaptionWords:
    """The words of each photo's captions: nouns in the singular, compounds of two, and what they are kinds of.

    Args:
        captions: of each photo.
        seen: photos that a word must be said of.

    Raises:
        ValueError: lemminflect is not installed.
    """
    plain = Counter(word for own in captions for text in own for word in _split(text.lower()))
    runs = [[run for text in own for run in _runs(text, plain)] for own in captions]
    compounds = _find_compounds(runs)
    words = [{word for run in own for word in _named(run, compounds)} for own in runs]
    words = [own.union(*map(kinds_of, own)) for own in words]
    counts = Counter(word for own in words for word in own)
    vocabulary = tuple(sorted(word for word, count in counts.items() if count >= seen))
    number = {word: i for i, word in enumerate(vocabulary)}
    return CaptionWords(vocabulary, [sorted(number[word] for word in own if word in number) for own in words])


def words_for_losses(config: TrainConfig, captions: Sequence[Sequence[str]]) -> CaptionWords | None:
    """The words of each photo's captions, for those losses of a recipe that need them; None where none does.

    Raises:
        ValueError: no word is said of enough photos; lemminflect is not installed.
    """
    losses = [name for name, loss in weighted_losses(config.losses).items() if loss.words]
    if not losses:
        return None
    words = find_words(captions)
    if not words.vocabulary and any(captions):  # where no sample can be read, the features say so
        raise ValueError(
            f"the losses {', '.join(losses)} need words, and no word is said of {SEEN} of these {len(captions)} photos "
            "or more; give more photos, or leave these losses out (weight 0)"
        )
    return words


def _split(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text)


def _runs(text: str, plain: Counter[str]) -> Iterator[list[tuple[str, bool]]]:
    """Words that stand together, nothing between them that names no thing; each with whether it is a noun itself."""
    for part in re.split(r"[^a-z\s'-]+", text.lower()):
        run: list[tuple[str, bool]] = []
        for word in _split(part):
            if word in NO_THINGS or len(word) < 2:
                yield run
                run = []
            else:
                lemmas = _singular(word)
                noun = max(lemmas, key=lambda lemma: plain[lemma]) if lemmas else None
                run.append((noun or word, noun is not None and noun not in NO_THINGS))
        yield run


@cache
def _singular(word: str) -> tuple[str, ...]:
    """What a word can be the plural of, or itself; nothing for what is no noun."""
    if word in PLURALS:
        return (PLURALS[word],)
    lemmas = require("lemminflect", extra="train").getAllLemmas(word)
    verb = lemmas.get("VERB", (word,))[0]
    if verb != word and word.endswith(("ing", "ed")) and word not in _THINGS_IN_ING:
        return ()  # "sitting", which a lexicon has as a noun too
    return lemmas.get("NOUN", ())


def _find_compounds(runs: Sequence[Sequence[list[tuple[str, bool]]]]) -> set[tuple[str, str]]:
    """Pairs of words that mean one thing together: said often, and of many of the photos with the rarer word."""
    single, pairs = Counter[str](), Counter[tuple[str, str]]()
    for own in runs:
        single.update({word for run in own for word, _ in run})
        pairs.update({(a, b) for run in own for (a, _), (b, noun) in pairwise(run) if noun})
    return {
        (a, b)
        for (a, b), count in pairs.items()
        if f"{a} {b}" in NOT_THEIR_LAST_WORD
        or (count >= COMPOUND_SEEN and count >= COMPOUND_SHARE * min(single[a], single[b]))
    }


def _named(run: list[tuple[str, bool]], compounds: set[tuple[str, str]]) -> Iterator[str]:
    """The things that a run of words names; the two words of a compound name one."""
    i = 0
    while i < len(run):
        if i + 1 < len(run) and (run[i][0], run[i + 1][0]) in compounds:
            yield f"{run[i][0]} {run[i + 1][0]}"
            i += 2
            continue
        if run[i][1]:
            yield run[i][0]
        i += 1
