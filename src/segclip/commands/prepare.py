"""`segclip prepare`: any source into shards, with a progress bar, a summary and a sheet to look at."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from segclip.data.prepare import Settings, map_locally, map_over_cluster, prepare
from segclip.data.remote import is_remote
from segclip.data.shard_writer import REPORT
from segclip.data.shards import INDEX, Index, Shards
from segclip.data.sources.open import Format, open_source


def prepare_files(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    form: Format = "auto",
    photos: Path | None = None,
    split: str = "train",
    max_bad: float = 0.05,
    workers: int | None = None,
    ray: bool = False,
    preview: int = 0,
) -> Index:
    """Write the shards of a source into `out`; see `segclip prepare --help`.

    Raises:
        ValueError: a source, an option or a folder that cannot be used.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers}; give at least 1, or leave the option out for all cores")
    if preview < 0:
        raise ValueError(f"preview of {preview} photos; give at least 1, or leave the option out for none")
    map_chunks = map_over_cluster if ray else partial(map_locally, workers=workers)
    found = open_source(source, form, photos, split)
    with _bar() as watch:
        index = prepare(found, out, settings, max_bad=max_bad, map_chunks=map_chunks, watch=watch)
    if preview:
        from segclip.data.preview import write_preview

        write_preview(Shards(out), preview, out / "preview.png")
    return index


def open_or_prepare(data: str, out: Path) -> Shards:
    """The shards at a place; a source that is none yet is prepared first, with the default settings, into `out`.

    Raises:
        ValueError: neither shards nor a source that can be used.
    """
    if not is_remote(data) and not (Path(data) / INDEX).exists():
        prepare_files(Path(data), out, Settings())
        return Shards(out)
    return Shards(data)


def summary(index: Index, out: Path) -> Table:
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
    with Progress(TextColumn("preparing"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1.0)
        start: tuple[float, int] | None = None

        def watch(read: float, seen: int) -> None:
            nonlocal start
            start = start or (time.monotonic(), seen)  # from the first chunk on: workers start slowly
            rate = (seen - start[1]) / max(time.monotonic() - start[0], 1e-9)
            progress.update(task, completed=read, description=f"{seen:,} photos, {rate:.0f}/s")

        yield watch
