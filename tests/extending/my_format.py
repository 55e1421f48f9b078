"""An annotation format: python my_format.py annotate FOLDER --labels cat dog --out OUT"""

import sys
from typing import IO

from segclip.annotate.formats import FORMATS
from segclip.annotate.formats.format import Format
from segclip.annotate.segments import Collection
from segclip.cli import main


def write_areas(file: IO[str], found: Collection) -> None:
    for photo in found.photos():
        for segment in photo.foreground():
            file.write(f"{photo.photo}\t{segment.label}\t{segment.area}\n")


FORMATS["areas"] = Format(files={"areas.tsv": write_areas})

if __name__ == "__main__":
    sys.exit(main())
