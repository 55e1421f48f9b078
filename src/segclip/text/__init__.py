"""Texts: tokenizers, prompts, what a list of labels must be."""
