"""Prompt templates: the texts that a label is put into."""

PAPER_TEMPLATES = ("a photo of a {}.",)  # arXiv 2211.14813, evaluation protocol
OPEN_TEMPLATES = ("a {}",)  # one: each further template embeds all contrast words once more
