"""The web page and the endpoint that `segclip web` serves."""
