"""Text: tokenizers, prompts, checks of labels."""
