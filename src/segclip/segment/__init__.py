"""A photo and labels -> a label map."""

from segclip.segment.protocols.paper import paper_scores
from segclip.segment.result import Found, Segmentation
from segclip.segment.segmenter import EncodedPhoto, Segmenter

__all__ = ["EncodedPhoto", "Found", "Segmentation", "Segmenter", "paper_scores"]
