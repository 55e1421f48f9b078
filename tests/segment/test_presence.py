"""`presence`: one check for Python, the command line and the web, and who may find that a label is not in the photo."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import skimage.data
import torch
from helpers.small_model import small_model

from segclip.segment.background import Background
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.presence import Presence, check_presence
from segclip.segment.protocols.paper import PaperProtocol
from segclip.segment.protocols.protocol import EmbeddedLabels, LabelMap
from segclip.segment.segmenter import Segmenter

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
LABELS = ["cup", "rocket", "table"]


@pytest.mark.parametrize(
    ("given", "expected"), [("auto", "auto"), (" AUTO ", "auto"), (None, None), ("none", None), ("None", None)]
)
def test_what_can_be_asked_for(given: object, expected: Presence) -> None:
    assert check_presence(given) == expected


@pytest.mark.parametrize("given", ["", "yes", "0.5", 0.5, 0, 1, True, False, float("nan"), ["auto"], "x" * 1000])
def test_what_cannot(given: object) -> None:
    with pytest.raises(ValueError, match=r"presence .*; give auto, or none \(None in Python\)") as error:
        check_presence(given)
    assert repr(given)[:30] in str(error.value) and len(str(error.value)) < 200


@dataclass(frozen=True)
class Judge(PaperProtocol):
    """The paper's protocol, but the second label is never there: the first takes its pixels."""

    asked: list[Presence] = field(default_factory=list, repr=False)

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        self.asked.append(presence)
        found = super().label_photo(photo, labels, background, presence, scale)
        if presence is None:
            return found
        likely = torch.tensor([0.9, 0.125, 0.8])
        return replace(found, labels=found.labels.where(found.labels != 2, 1), presence=likely)


def test_a_protocol_is_asked_and_its_judgement_given() -> None:
    segmenter = Segmenter(small_model(), judge := Judge())
    result = segmenter.segment(PHOTO, LABELS, background=None)
    assert result.presence.dtype == np.float32 and result.presence.tolist() == pytest.approx([0.9, 0.125, 0.8])
    assert "rocket" in result.not_found() and not result.mask("rocket").any()
    assert result.record()["presence"] == {"cup": 0.9, "rocket": 0.125, "table": 0.8}
    (batch,) = segmenter.segment_batch([PHOTO], LABELS, presence=None)
    (encoded,) = segmenter.encode([PHOTO])
    again = segmenter.label(encoded, LABELS, presence=None)
    assert batch.presence.tolist() == again.presence.tolist() == [1, 1, 1]
    segmenter.segment_embeddings(PHOTO, torch.randn(3, small_model().config.embed))  # which are all looked for
    assert judge.asked == ["auto", None, None, None]


@pytest.mark.parametrize("protocol", ["paper", "groupvit"])
def test_the_papers_protocols_never_judge(protocol: str) -> None:
    (encoded,) = (segmenter := Segmenter(small_model(), protocol)).encode([PHOTO])
    judged, all_there = (segmenter.label(encoded, LABELS, presence=presence) for presence in ("auto", None))
    np.testing.assert_array_equal(judged.labels, all_there.labels)
    np.testing.assert_array_equal(judged.scores, all_there.scores)
    assert judged.presence.tolist() == all_there.presence.tolist() == [1, 1, 1]


@pytest.mark.parametrize("background", ["auto", None])
def test_everyday_protocol_takes_every_label_to_be_there_if_told_so(background: Background) -> None:
    result = Segmenter(small_model()).segment(PHOTO, LABELS, background=background, presence=None)
    assert result.presence.tolist() == [1, 1, 1]
