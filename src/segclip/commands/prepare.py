"""`segclip prepare`: any source into shards, with a progress bar, a summary and a preview."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from segclip.commands.options import Out
from segclip.commands.terminal import be_quiet, console
from segclip.data.prepare import Settings, map_locally, map_over_cluster
from segclip.data.prepare import prepare as write_shards
from segclip.data.preview import write_preview
from segclip.data.remote import is_remote
from segclip.data.shard_writer import REPORT
from segclip.data.shards import INDEX, Index, Shards
from segclip.data.sources.open import Format, open_source


def prepare(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    /,
    out: Out,
    format: Format = "auto",
    photos: Path | None = None,
    split: str = "train",
    name: str = "pairs",
    side: int = 256,
    shard_mb: float = 256.0,
    superpixels: Literal["scikit-image", "opencv", "none"] = "scikit-image",
    max_bad: float = 0.05,
    workers: int | None = None,
    ray: bool = False,
    preview: int = 0,
    quiet: bool = False,
) -> int:
    """Make training data: photos and captions, of whatever source, into shards with superpixels.

    Writes OUT/NAME-000000.tar ..., OUT/index.json, and OUT/report.jsonl with each photo that was left out. Killed at
    any moment, the same command goes on; the bytes are the same on any number of workers. docs/data.md tells more.

    Args:
        source: A JSON-lines, CSV or TSV file of photo paths and captions, COCO captions, Karpathy's split, a folder of
            img2dataset, or a Hugging Face dataset on disk.
        out: Folder to write to; made if missing.
        format: What SOURCE is; told from its content if not given.
        photos: Folder that the photos' paths start from; the source's own if not given.
        split: Which part, where a source has several: Karpathy's and Hugging Face's.
        name: Of the shards.
        side: Short side, in pixels, that larger photos are scaled down to.
        shard_mb: Largest size of a shard, in millions of bytes.
        superpixels: scikit-image: as the paper has them. opencv: faster, with other borders. none: leave
            them to the training.
        max_bad: Share of photos left out above which the run stops.
        workers: Processes; all cores if not given.
        ray: Do the work on a Ray cluster (pip install "segclip[scale]").
        preview: Also draw OUT/preview.png: so many samples, as training sees them.
        quiet: Print nothing but what failed.
    """
    be_quiet(quiet)
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers}; give at least 1, or leave the option out for all cores")
    if preview < 0:
        raise ValueError(f"preview of {preview} photos; give at least 1, or leave the option out for none")
    settings = Settings(name, side, shard_mb, None if superpixels == "none" else superpixels)
    map_chunks = map_over_cluster if ray else partial(map_locally, workers=workers)
    opened = open_source(source, format, photos, split)
    with _bar() as watch:
        index = write_shards(opened, out, settings, max_bad=max_bad, map_chunks=map_chunks, watch=watch)
    if preview:
        write_preview(Shards(out), preview, out / "preview.png")
    console.print(_summary(index, out))
    return 0


def open_or_prepare(data: str, out: Path) -> Shards:
    """The shards in a folder or at an address; a source that is none yet is prepared first, as by default, into `out`.

    Raises:
        ValueError: neither shards nor a source that can be used.
    """
    if not is_remote(data) and not (Path(data) / INDEX).exists():
        opened = open_source(Path(data))
        with _bar() as watch:
            write_shards(opened, out, Settings(), watch=watch)
        return Shards(out)
    return Shards(data)


def _summary(index: Index, out: Path) -> Table:
    """What was written and what was left out, for the terminal."""
    table = Table(title=str(out), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = [("photos", index.samples), ("captions", index.captions), ("shards", len(index.shards))]
    rows.append(("MB", round(sum(shard.bytes for shard in index.shards) / 1e6)))
    rows += [(f"left out: {kind}", count) for kind, count in index.left_out.items()]
    if index.duplicates:
        rows.append(("duplicates, kept", index.duplicates))
    for name, value in rows:
        table.add_row(name, f"{value:,}")
    if index.left_out or index.duplicates:
        table.caption = f"each of them is in {REPORT}"
    return table


@contextmanager
def _bar() -> Iterator[Callable[[float, int], None]]:
    """A progress bar; the function in it takes the share that is done and the number of photos seen."""
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(TextColumn("preparing"), *columns, console=console, disable=console.quiet) as progress:
        task = progress.add_task("", total=1.0)
        start: tuple[float, int] | None = None

        def watch(read: float, seen: int) -> None:
            nonlocal start
            start = start or (time.monotonic(), seen)  # from the first chunk on: workers start slowly
            rate = (seen - start[1]) / max(time.monotonic() - start[0], 1e-9)
            progress.update(task, completed=read, description=f"{seen:,} photos, {rate:.0f}/s")

        yield watch
