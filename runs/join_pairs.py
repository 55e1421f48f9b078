"""Join folders of photos and captions into one: python runs/join_pairs.py PAIRS [PAIRS ...] OUT

Each PAIRS is a folder with pairs.jsonl, whose "image" is a path relative to it. OUT gets a pairs.jsonl of all lines, in
order, and a link to each folder, 0, 1 ..., through which the photos are found: none is copied.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from segclip.data.sources.pairs import to_path
from segclip.utils.files import atomic


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    *folders, out = map(Path, sys.argv[1:])
    count = join(folders, out)
    print(f"wrote {out / 'pairs.jsonl'}: {count} photos of {len(folders)} folders")


def join(folders: Sequence[Path], out: Path) -> int:
    """Write `out`; what it held of an earlier call is replaced.

    Returns:
        Number of lines.

    Raises:
        OSError: a folder has no pairs.jsonl.
        ValueError: a line is not JSON, or its photo is not inside the folder.
    """
    lines = [line for number, folder in enumerate(folders) for line in read(number, folder)]
    out.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(folders):
        link = out / str(number)
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
    with atomic(out / "pairs.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def read(number: int, folder: Path) -> Iterator[dict]:
    """The lines of one folder, each photo under the folder's number."""
    path = folder / "pairs.jsonl"
    with path.open(encoding="utf-8") as file:
        for at, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                pair = json.loads(text)
                if not isinstance(pair, dict):
                    raise ValueError("expected an object with image and captions")
                yield pair | {"image": f"{number}/{to_path(pair.get('image'))}"}
            except ValueError as error:
                raise ValueError(f"{path}, line {at}: {error}") from None


if __name__ == "__main__":
    main()
