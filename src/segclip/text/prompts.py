"""Prompt templates: the texts that a label is inserted into."""

PAPER_TEMPLATES = ("a photo of a {}.",)  # arXiv 2211.14813, evaluation protocol
OPEN_TEMPLATES = ("a {}",)  # more of them cost time and gave nothing
