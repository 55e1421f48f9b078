"""A list of every segment for a spreadsheet, the most doubtful first: what to look at first."""

import csv
from array import array
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from segclip.annotate.formats.format import Format
from segclip.annotate.segments import Collection

# Where a spreadsheet takes a text for a formula; the letters of full width too.
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def write_review(file: IO[str], found: Collection) -> None:
    """A photo where nothing was found has a line for its background."""
    doubts, offsets = array("d"), array("q")  # all that stays in memory: 16 bytes a segment
    with TemporaryFile("w+", encoding="utf-8", newline="\n") as rows:
        lines = csv.writer(rows, lineterminator="\n")
        for photo in found.photos():
            for one in photo.foreground() or photo.segments:
                doubts.append(one.doubt)
                offsets.append(rows.tell())
                lines.writerow([_guard(photo.photo), _guard(one.label), one.doubt, one.score, one.share, *one.box])
        file.write("photo,label,doubt,score,share,left,top,right,bottom\n")
        for row in np.argsort(-np.array(doubts), kind="stable"):
            rows.seek(offsets[row])
            file.write(rows.readline())


def _guard(text: str) -> str:
    """The text, after an apostrophe where a spreadsheet would take it for a formula, which could run anything."""
    return f"'{text}" if text.startswith(FORMULA) else text


REVIEW = Format(files={"review.csv": write_review})
