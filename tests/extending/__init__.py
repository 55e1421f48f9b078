"""What someone adds to segclip, each in one file and without touching the package; `test_extending.py` uses them."""
