"""Where photos and captions come from."""
