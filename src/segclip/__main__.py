"""`python -m segclip` is the command `segclip`."""

import sys

from segclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
