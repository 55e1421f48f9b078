"""The command `segclip`: the table of commands, and errors in one line.

Exit codes: 0 all done, 1 some photos failed (named at the end), 2 nothing could be done, 130 interrupted, 143 told
to stop (SIGTERM) and saved.
A command's module is imported when the command is given: torch takes a second, and `--help` does not need it.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segclip import __version__
from segclip.commands.terminal import be_quiet
from segclip.utils.failures import DEBUG, Stopped, unexpected

SHELLS = ("bash", "zsh", "fish", "tcsh")
OK, SOME_FAILED, NOTHING_DONE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# A command's name, which is that of its module in segclip.commands and of the function in it, and what it is for.
COMMANDS = {
    "segment": "Find where in photos the things are that you name.",
    "compare": "Segment a photo with several models, dense heads or protocols, side by side on one sheet.",
    "annotate": "Make annotations of a folder of photos, for people to correct: COCO, CVAT, Label Studio, YOLO, index "
    "PNGs.",
    "regions": "Draw what learnable centers or k-means gathered in photos, each seen whole, not in windows.",
    "models": "List the models that can be opened, what was published of them, and which are on this machine.",
    "convert": "Convert weights (the authors' segclip.bin, OpenAI's or transformers' CLIP) to segclip's safetensors.",
    "export": "Write a model as one file that runs without this package, for any number of photos of any size.",
    "prepare": "Make training data: photos and captions, of whatever source, into shards with superpixels.",
    "train": "Train a model: segclip train RECIPE --data DIR --out RUN, or go on with a broken run: --resume RUN.",
    "evaluate": "Measure a model: mIoU on a benchmark, or on your own photos with masks.",
    "web": "Serve a page where photos are dropped and labels typed, and an endpoint for programs. docs/web.md tells "
    "more.",
}

console = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _print_any_letter()
    be_quiet(False)
    try:
        if argv[:1] in (["-h"], ["--help"]):
            _show_help()
            return OK
        if argv[:1] in (["-V"], ["--version"]):
            print(f"segclip {__version__}")
            return OK
        if argv[:1] == ["--print-completion"]:
            return _print_completion(argv[1:])
        name = argv[0] if argv else None
        if name not in COMMANDS:
            raise ValueError(f"{f'command {name!r}' if name else 'no command'}; known are {', '.join(COMMANDS)}")
        return tyro.cli(find_command(name, argv[1:]), prog=f"segclip {name}", args=argv[1:])
    except SystemExit as leave:  # tyro: --help, or arguments it could not read, which it has explained
        return leave.code if isinstance(leave.code, int) else OK if leave.code is None else NOTHING_DONE
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Stopped as stopped:
        return _fail(str(stopped), TERMINATED)
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory; use fewer or smaller photos")
    except Exception as error:  # a bug: still one line for the user, the traceback for who asks
        if DEBUG in os.environ:
            raise
        return _fail(unexpected(type(error), str(error)))


def find_command(name: str, arguments: Sequence[str]) -> Callable[..., int]:
    """The function of a command; that of `train` has the options of the recipe that the arguments name."""
    module = import_module(f"segclip.commands.{name}")
    return module.train_command(arguments) if name == "train" else getattr(module, name)


def _print_completion(shell: Sequence[str]) -> int:
    """Print what lets a shell complete commands, recipes and options."""
    if len(shell) != 1 or shell[0] not in SHELLS:
        raise ValueError(f"--print-completion {' '.join(shell)}".rstrip() + f"; give one of {', '.join(SHELLS)}")
    table = {name: find_command(name, ()) for name in COMMANDS}
    asked = ["--tyro-print-completion", shell[0]]
    return tyro.extras.subcommand_cli_from_dict(table, prog="segclip", args=asked)


def _print_any_letter() -> None:
    """Let a terminal that cannot print a letter (cp1252, a file name that is not UTF-8) show its number instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_help() -> None:
    table = Table.grid("", "", padding=(0, 2))
    for name, about in COMMANDS.items():
        table.add_row(f"  {name}", about)
    output = Console(highlight=False)
    output.print(
        "usage: segclip COMMAND ...\n\nSegment photos by words, with SegCLIP (arXiv 2211.14813).\n", markup=False
    )
    output.print(
        table,
        "\nsegclip COMMAND --help tells more of each; segclip --version, segclip --print-completion bash.",
        sep="\n",
        markup=False,
    )


def _fail(why: str, code: int = NOTHING_DONE) -> int:
    console.print(f"[bold red]segclip:[/] {escape(' '.join(why.split()))}", highlight=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
