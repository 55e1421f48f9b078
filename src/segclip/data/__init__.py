"""Photos and captions: from any source to batches."""
