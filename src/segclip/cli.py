"""The command `segclip`: one thin function per command, and errors in one line.

Exit codes: 0 all done, 1 some photos failed (named at the end), 2 nothing could be done, 130 interrupted.
torch and all that needs it are imported by the commands, so that `--help` is quick.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape

OK, SOME_FAILED, NOTHING_DONE, INTERRUPTED = 0, 1, 2, 130
DEBUG = "SEGCLIP_DEBUG"  # an environment variable; set, an unexpected error shows its traceback

console = Console(stderr=True)


def segment(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    labels: tuple[str, ...],
    out: Path,
    model: str = "mini",
    device: str = "auto",
    protocol: Literal["open", "paper"] = "open",
    background: str = "auto",
) -> int:
    """Find where in photos the things are that you name.

    Writes STEM.overlay.png (to look at), STEM.mask.png (pixel value = label index, 0 the background; 16-bit from 256
    labels on) and STEM.json (labels, areas, scores, boxes) for each photo. Of photos with the same stem, the second
    becomes STEM-2, and so on.

    Args:
        photos: Photos, or folders of photos.
        labels: What to look for: --labels cat "potted plant".
        out: Folder to write to; made if missing.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        device: auto, cpu, cuda, mps ...
        protocol: open: for people. paper: the evaluation of arXiv 2211.14813, to the letter.
        background: auto: the protocol's own way. none: each pixel gets a label. A number in 0..1: where the best
            label's probability is below it.
    """
    from segclip.run_segment import segment_files

    return segment_files(photos, labels, out, model, device, protocol, background)


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    eight_bit: bool = False,
) -> int:
    """Convert weights (the authors' segclip.bin, OpenAI's or transformers' CLIP) to segclip's safetensors.

    Args:
        source: File or folder to read.
        target: File to write, such as model.safetensors.
        eight_bit: Store weight matrices in 8 bits with a scale per row, about a quarter of the size.
    """
    from segclip import checkpoints

    checkpoints.convert(source, target, eight_bit=eight_bit)
    console.print(f"wrote {target}", markup=False, highlight=False, soft_wrap=True)
    return OK


def prepare(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    /,
    out: Path,
    format: Literal["auto", "jsonl", "table", "coco", "karpathy", "img2dataset", "huggingface"] = "auto",
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
        superpixels: scikit-image: as the paper has them. opencv: four times as fast, with other borders. none: leave
            them to the training.
        max_bad: Share of photos left out above which the run stops.
        workers: Processes; all cores if not given.
        ray: Do the work on a Ray cluster (pip install "segclip[scale]").
        preview: Also draw OUT/preview.png: so many samples, as training sees them.
    """
    from segclip.data.prepare import Settings
    from segclip.run_prepare import prepare_files, summary

    settings = Settings(name, side, shard_mb, None if superpixels == "none" else superpixels)
    index = prepare_files(
        source,
        out,
        settings,
        form=format,
        photos=photos,
        split=split,
        max_bad=max_bad,
        workers=workers,
        ray=ray,
        preview=preview,
    )
    console.print(summary(index, out))
    return OK


def train(
    recipe: Annotated[Literal["mini"], tyro.conf.Positional],
    /,
    data: str,
    out: Path,
    towers: str = "mini",
    steps: int | None = None,
    seed: int = 0,
) -> int:
    """Train the centers over frozen towers, on this machine; the same command again goes on with a broken run.

    Writes OUT/metrics.jsonl (a line a step) and OUT/model.safetensors, and keeps the towers' features in OUT/features.

    Args:
        recipe: mini: two CPU cores, under two hours for 11,000 photos.
        data: Shards that segclip prepare made: a folder, or an address (https://, gs://, hf://, pipe:). What prepare
            takes is prepared first, into OUT/shards.
        out: Folder of the run.
        towers: Whose trunk and text tower to keep: mini, or a file of a model of ours.
        steps: End after so many steps; as the recipe has it if not given.
        seed: Of everything random.
    """
    import dataclasses

    from segclip.recipes import RECIPES
    from segclip.run_prepare import open_or_prepare
    from segclip.train.loop import train as run

    config = dataclasses.replace(RECIPES[recipe](), seed=seed)
    file = run(config, open_or_prepare(data, out / "shards"), out, towers, steps=steps)
    console.print(f"wrote {file}", markup=False, highlight=False, soft_wrap=True)
    return OK


COMMANDS = {"segment": segment, "convert": convert, "prepare": prepare, "train": train}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="segclip", args=argv, description=_first_line())
    except SystemExit as leave:  # tyro: --help, or arguments it could not read, which it has explained
        return leave.code if isinstance(leave.code, int) else OK if leave.code is None else NOTHING_DONE
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory; use fewer or smaller photos")
    except Exception as error:  # a bug: still one line for the user, the traceback for who asks
        if DEBUG in os.environ:
            raise
        return _fail(f"unexpected {type(error).__name__}: {error} (set {DEBUG}=1 to see where)")


def _fail(why: str, code: int = NOTHING_DONE) -> int:
    console.print(f"[bold red]segclip:[/] {escape(' '.join(why.split()))}", highlight=False, soft_wrap=True)
    return code


def _first_line() -> str:
    return "Segment photos by words, with SegCLIP (arXiv 2211.14813)."


if __name__ == "__main__":
    sys.exit(main())
