"""The command `segclip`: one thin function per command, and errors in one line.

Exit codes: 0 all done, 1 some photos failed (named at the end), 2 nothing could be done, 130 interrupted, 143 told
to stop (SIGTERM) and saved.
torch and all that needs it are imported by the commands, so that `--help` is quick.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console
from rich.markup import escape

from segclip.train.config import TrainConfig, Weights
from segclip.train.recipes import RECIPES
from segclip.train.resolve import resolve
from segclip.utils.optional import require

OK, SOME_FAILED, NOTHING_DONE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
DEBUG = "SEGCLIP_DEBUG"  # an environment variable; set, an unexpected error shows its traceback

WRITES = """Writes OUT/recipe.json, OUT/metrics.jsonl (a line a step), OUT/checkpoints, OUT/sheets (photos with their
regions) and at the end OUT/model.safetensors. The same command again goes on with a broken run."""

console = Console(stderr=True)


def segment(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    labels: tuple[str, ...],
    out: Path,
    model: str = "mini",
    device: str = "auto",
    protocol: str = "open",
    background: str = "auto",
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
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
        protocol: open: for people. paper: the evaluation of arXiv 2211.14813, to the letter. groupvit: the same rules
            on larger photos and overlapping windows.
        background: auto: the protocol's own way. none: each pixel gets a label. A number in 0..1: where the best
            label's probability is below it.
        dtype: Of the image tower's products. bfloat16: faster where the processor multiplies such numbers; about one
            pixel of a hundred changes. int8: the same with a quarter of the memory for the trunk's weights.
    """
    from segclip.commands.segment import segment_files

    return segment_files(photos, labels, out, model, device, protocol, background, dtype)


def annotate(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    labels: tuple[str, ...],
    out: Path,
    model: str = "mini",
    device: str = "auto",
    protocol: str = "open",
    background: str = "auto",
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    clean: float = 0.0005,
    tolerance: float = 1.0,
    ray: bool = False,
) -> int:
    """Make annotations of a folder of photos, for people to correct: COCO, CVAT, Label Studio, YOLO, index PNGs.

    Writes OUT/coco.json, coco-polygons.json, panoptic.json, cvat.xml, label-studio.json, yolo/, masks/ and
    review.csv, the most doubtful regions first. One annotation per label and photo: it does not count things. Killed
    at any moment, the same command goes on. docs/annotate.md tells how to import each file.

    Args:
        folder: Folder of photos.
        labels: What to look for: --labels cat "potted plant".
        out: Folder to write to; made if missing.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        device: auto, cpu, cuda, mps ...
        protocol: open, paper or groupvit: see segclip segment.
        background: auto, none, or a number in 0..1: see segclip segment.
        dtype: Of the image tower's products: see segclip segment.
        clean: Share of a photo's area; smaller pieces and holes are given to their neighbours. 0: none are.
        tolerance: How far a polygon may lie from the pixels' edges, in pixels. 0: along them, with many corners.
        ray: Do the work on a Ray cluster (pip install "segclip[scale]").
    """
    from segclip.annotate.annotator import Drawing, Request
    from segclip.commands.annotate import annotate_folder
    from segclip.segment.background import check_background

    drawing = Drawing(clean, tolerance)
    request = Request(labels, model, device, protocol, check_background(background), dtype, drawing)
    return annotate_folder(folder, out, request, ray=ray)


def regions(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    out: Path,
    labels: tuple[str, ...] = (),
    model: str = "mini",
    device: str = "auto",
) -> int:
    """Draw what the learnable centers gathered in photos, each seen whole, not in windows.

    Writes STEM.regions.png: two pictures for each center, the patches that went to it (hard), and the share it took of
    each patch (soft), bright where it took much.

    Args:
        photos: Photos, or folders of photos.
        out: Folder to write to; made if missing.
        labels: Name each region with the nearest of these, and its probability among them.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        device: auto, cpu, cuda, mps ...
    """
    from segclip.commands.regions import draw_regions

    return draw_regions(photos, out, labels, model, device)


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
    from segclip.checkpoints import loading as checkpoints

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
    from segclip.commands.prepare import prepare_files, summary
    from segclip.data.prepare import Settings

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


def export(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    model: str = "mini",
    labels: tuple[str, ...] | None = None,
    background: float | None = None,
) -> int:
    """Write a model as one file that runs without this package, for any number of photos of any size.

    Its input `pixels` (B,3,H,W) is RGB of 0-1, minus CLIP's mean, by CLIP's standard deviation; H and W are multiples
    of the model's patch, for which the file's metadata has a number. examples/run_onnx.py runs one.

    Args:
        file: NAME.onnx, for ONNX Runtime; or NAME.pt2, for torch.export.load.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        labels: Fold these labels in: the file gives a label map. Without, it gives `embedding`, `regions` and `soft`,
            from which any labels can be found.
        background: With labels, the paper's threshold in 0..1 below which a pixel is background, 0. Without, every
            pixel gets a label.
    """
    from segclip.checkpoints.loading import load
    from segclip.export import export as write

    write(load(model, "cpu"), file, labels, background=background)
    console.print(f"wrote {file}", markup=False, highlight=False, soft_wrap=True)
    return OK


def evaluate(
    set: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET")],
    /,
    root: Path,
    model: str = "mini",
    protocol: str = "open",
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE")] = (),
    split: Literal["val", "train"] | None = None,
    limit: int | None = None,
    names: Literal["own", "sclip"] = "own",
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    json: Path | None = None,
    report: Path | None = None,
    calibrate: bool = False,
    skip_bad: bool = False,
) -> int:
    """Measure a model: mIoU on a benchmark, or on your own photos with masks.

    Prints the IoU of each class, the mIoU with its 95% interval over photos, pixel accuracy, and what the regions would
    reach with the best name for each. docs/evaluation.md has the sets' folders and the protocols. Many processes:
    torchrun -m segclip evaluate ...

    Args:
        set: voc2012, context60, context59, coco-object, coco-stuff, ade20k, cityscapes; or folder: images/, masks/
            (index PNGs, 255 ignored) and classes.json.
        root: Folder of the set, as its download unpacks.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        protocol: open: for people. paper: the evaluation of arXiv 2211.14813, with its threshold for the set.
            groupvit: the same rules at 448 pixels with overlapping windows.
        changes: Fields of the protocol's settings, as in --set threshold=0.7 stride=112.
        split: val, or train; train for --calibrate.
        limit: So many photos, spread evenly over the set.
        names: own: the classes as the paper names them. sclip: several words a class, as SCLIP asks for them.
        device: auto, cpu, cuda, mps ...
        dtype: Of the image tower's products: see segclip segment.
        json: File for the result with all that is needed to repeat it. NAME.photos.jsonl beside it keeps what each
            photo gave, so that the same command goes on with a broken run.
        report: Folder for a page: classes, confusions, the best and the worst photos.
        calibrate: Try background thresholds on the training split, and print the curve, instead of evaluating.
        skip_bad: Leave out photos and masks that cannot be read, and name them at the end.
    """
    from segclip.commands.evaluate import evaluate_set

    return evaluate_set(
        set,
        root,
        model,
        protocol,
        changes=changes,
        split=split,
        limit=limit,
        names=names,
        device=device,
        dtype=dtype,
        file=json,
        report=report,
        calibrating=calibrate,
        skip_bad=skip_bad,
    )


def web(port: int = 7860, host: str = "127.0.0.1", model: tuple[str, ...] = ("mini",), device: str = "auto") -> int:
    """Serve a page where photos are dropped and labels typed, and an endpoint for programs. docs/web.md tells more.

    Args:
        port: To listen at; 0: any that is free, which is printed.
        host: Address to listen at. 127.0.0.1: this computer alone. 0.0.0.0: whoever can reach it, without a password.
        model: What can be chosen, the first at the start: mini, vit-b16, files of weights, Hugging Face hub ids.
        device: auto, cpu, cuda, mps ...
    """
    from segclip.web.server import serve

    return serve(port, host, model, device)


@dataclass(frozen=True)
class NewRun:
    """A run that `segclip train RECIPE` asks for."""

    config: TrainConfig
    data: str | None
    out: Path


@dataclass(frozen=True)
class NoRecipe:
    """No recipe: --resume names a run that goes on."""


def train_command(arguments: Sequence[str] = ()) -> Callable[..., int]:
    """The command `train`: each recipe is a subcommand, whose options are the recipe's fields.

    Args:
        arguments: what follows `train`. Where a recipe does, it shows and takes the model that it really trains, of
            which the weights that it starts from may have to tell.

    Raises:
        ValueError: an unknown recipe; weights that cannot be read.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in RECIPES:
        raise ValueError(f"recipe {arguments[0]!r}; known are {', '.join(RECIPES)}")
    choices = [_choice(name, arguments[1:] if arguments[:1] == [name] else None) for name in RECIPES]
    none = Annotated[NoRecipe, tyro.conf.subcommand("none", default=NoRecipe(), prefix_name=False)]
    kinds: Any = Union[(*choices, none)]

    def train(
        recipe: Annotated[kinds, tyro.conf.arg(name="")] = NoRecipe(),  # pyright: ignore[reportInvalidTypeForm]
        resume: Path | None = None,
        workers: int | None = None,
    ) -> int:
        """Train a model: segclip train RECIPE --data DIR --out RUN, or go on with a broken run: --resume RUN.

        segclip train RECIPE --help shows the recipe's fields, each of which can be given. Many processes, on one
        machine or many: torchrun -m segclip train ...

        Args:
            recipe: Recipes.
            resume: Folder of a run that was broken.
            workers: With --resume: processes that read for each process that trains, if not as before.
        """
        if resume and not isinstance(recipe, NewRun):
            return _resume(resume, workers)
        if resume or not isinstance(recipe, NewRun):
            raise ValueError(f"give a recipe ({', '.join(RECIPES)}) and --out RUN, or --resume RUN alone")
        if workers is not None:
            raise ValueError(f"--workers {workers} stands before the recipe; give it after the recipe's name")
        return _train(recipe.config, recipe.data, recipe.out)

    return train


def _choice(name: str, options: Sequence[str] | None) -> object:
    """A recipe as a subcommand; with its options, with its model and all that can be said of it."""
    recipe = RECIPES[name]
    default, paragraphs = recipe(), (inspect.getdoc(recipe) or name).splitlines()
    if options is not None:
        default = _with_model(default, options)

    def new_run(
        out: Path,
        data: str | None = None,
        config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = default,
    ) -> NewRun:
        """A run of a recipe.

        Args:
            out: Folder of the run; the same command again goes on with a broken run.
            data: Shards that segclip prepare made: a folder, or an address (https://, s3://, gs://, hf://). What
                prepare takes is prepared first, into OUT/shards. The recipe debug makes its own.
            config: The recipe; any field can be given.
        """
        if data is None and name != "debug":
            raise ValueError("no data given; --data names shards, or what segclip prepare takes")
        return NewRun(config, data, out)

    about = paragraphs[0] if options is None else "\n\n".join([*filter(None, paragraphs), WRITES])
    return Annotated[NewRun, tyro.conf.subcommand(name, constructor=new_run, description=about, prefix_name=False)]


def _with_model(recipe: TrainConfig, options: Sequence[str]) -> TrainConfig:
    """A recipe with the model that it trains over the weights that the options, or else itself, name."""

    def start(init_from: Weights = recipe.init_from) -> str | None:
        return init_from

    with contextlib.suppress(SystemExit):  # options that cannot be read: who reads all of them says so
        given, _ = tyro.cli(start, args=options, return_unknown_args=True, add_help=False, console_outputs=False)
        if given != recipe.init_from:  # the recipe's own model is for the recipe's own weights
            recipe = replace(recipe, init_from=given, model=None if given else recipe.model)
    return resolve(recipe)


def _resume(run: Path, workers: int | None) -> int:
    from segclip.train.run import read_recipe

    config, data = read_recipe(run)
    return _train(config if workers is None else replace(config, workers=workers), data, run)


def _train(config: TrainConfig, data: str | None, out: Path) -> int:
    PartialState = require("accelerate", extra="train").PartialState
    from segclip.commands.prepare import open_or_prepare
    from segclip.train.debug_data import make_data
    from segclip.train.distributed import only_cpu
    from segclip.train.loop import Stopped
    from segclip.train.run import train

    config = resolve(config)  # what cannot be trained is refused before data is made
    with PartialState(cpu=only_cpu()).main_process_first():  # it makes what is missing, the others find it there
        config, shards = (config, open_or_prepare(data, out / "shards")) if data else make_data(config, out)
    try:
        file = train(config, shards, out)
    except Stopped as stopped:
        return _fail(str(stopped), TERMINATED)
    if PartialState().is_main_process:
        console.print(f"wrote {file}", markup=False, highlight=False, soft_wrap=True)
    return OK


COMMANDS = {
    "segment": segment,
    "annotate": annotate,
    "regions": regions,
    "convert": convert,
    "export": export,
    "prepare": prepare,
    "train": train_command(),
    "evaluate": evaluate,
    "web": web,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = COMMANDS
    try:
        if argv[:1] == ["train"]:
            commands = {**COMMANDS, "train": train_command(argv[1:])}
        return tyro.extras.subcommand_cli_from_dict(commands, prog="segclip", args=argv, description=_first_line())
    except SystemExit as leave:  # tyro: --help, or arguments it could not read, which it has explained
        return leave.code if isinstance(leave.code, int) else OK if leave.code is None else NOTHING_DONE
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
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
