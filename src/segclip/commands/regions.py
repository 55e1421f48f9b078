"""`segclip regions`: a sheet for each photo; a bad photo stops no other."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from segclip.checkpoints.loading import load
from segclip.commands.segment import check_writable, find_photos, report, unused_stems
from segclip.data.photos import open_photo
from segclip.segment.many_photos import attempt
from segclip.segment.regions import draw_sheet, gather
from segclip.text.labels import check_labels
from segclip.utils.failures import Failed
from segclip.utils.files import atomic

SHEET = "{}.regions.png"  # of a photo, with its stem


def draw_regions(
    photos: Sequence[Path], out: Path, labels: Sequence[str] = (), model: str = "mini", device: str = "auto"
) -> int:
    """Draw what the centers gathered in photos into `out`; see `segclip regions --help`.

    Returns:
        0, 1 where some photos failed (named at the end), or 2 where all did.

    Raises:
        ValueError: labels, model, device or `out` that cannot be used.
    """
    if not photos:
        raise ValueError("no photo given; name photos or folders of photos, before --out")
    if labels:
        check_labels(labels)
    files, failures = find_photos(photos)
    check_writable(out)
    done = 0
    if files:
        loaded = load(model, device)
        named = list(zip(files, unused_stems(files, out, (SHEET,)), strict=True))
        with Progress(console=Console(stderr=True), disable=len(files) == 1, transient=True) as progress:
            for path, stem in progress.track(named):
                sheet = attempt(path, lambda path=path: draw_sheet(gather(loaded, open_photo(path), labels)))
                if isinstance(sheet, Failed):
                    failures.append((sheet.item, sheet.reason))
                    continue
                with atomic(out / SHEET.format(stem)) as temporary:
                    sheet.save(temporary, "PNG")
                done += 1
    report(failures, done, out)
    return (1 if failures else 0) if done else 2
