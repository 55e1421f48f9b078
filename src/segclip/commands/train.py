"""`segclip train`: each recipe is a subcommand, whose options are the recipe's fields; a broken run goes on."""

import contextlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from segclip.commands.options import Out
from segclip.commands.prepare import open_or_prepare
from segclip.commands.terminal import say
from segclip.data.shards import Shards
from segclip.losses import LOSSES
from segclip.train.config import TrainConfig, Weights
from segclip.train.debug_data import make_data
from segclip.train.initialization import check_recipe
from segclip.train.recipes import RECIPES
from segclip.train.resolve import resolve
from segclip.train.run import train as train_run
from segclip.train.run_files import read_recipe
from segclip.utils.processes import join_processes

WRITES = """Writes OUT/recipe.json, OUT/metrics.jsonl (a line a step), OUT/checkpoints, OUT/sheets (photos with their
regions) and at the end OUT/model.safetensors. The same command again goes on with a broken run."""

# Recipes that make their own data: from the recipe and the run's folder, the recipe that is trained and its shards.
OWN_DATA: dict[str, Callable[[TrainConfig, Path], tuple[TrainConfig, Shards]]] = {"debug": make_data}


@dataclass(frozen=True)
class NewRun:
    """A run that `segclip train RECIPE` asks for."""

    recipe: str
    config: TrainConfig
    data: str | None
    out: Path


@dataclass(frozen=True)
class NoRecipe:
    """No recipe: --resume names a run that goes on."""


def train_command(arguments: Sequence[str]) -> Callable[..., int]:
    """The command, as what follows `train` asks for it.

    Where that is a recipe, the command shows and takes the model that it really trains, of which the weights that it
    starts from may have to tell.

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
        if resume and recipe == NoRecipe():
            config, data = read_recipe(resume)
            return _train(NewRun("", config if workers is None else replace(config, workers=workers), data, resume))
        if resume or recipe == NoRecipe():
            raise ValueError(f"give a recipe ({', '.join(RECIPES)}) and --out RUN, or --resume RUN alone")
        if workers is not None:
            raise ValueError(f"--workers {workers} stands before the recipe; give it after the recipe's name")
        return _train(recipe)

    return train


def _choice(name: str, options: Sequence[str] | None) -> object:
    """A recipe as a subcommand; with its options, with its model and all that can be said of it."""
    recipe = RECIPES[name]
    default, paragraphs = recipe(), (inspect.getdoc(recipe) or name).splitlines()
    if options is not None:
        default = _with_losses(_with_model(default, options), options)

    def new_run(
        out: Out,
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
        if data is None and name not in OWN_DATA:
            raise ValueError("no data given; --data names shards, or what segclip prepare takes")
        return NewRun(name, config, data, out)

    about = (
        f"{paragraphs[0]} {_tell_defaults(default)}"
        if options is None
        else "\n\n".join([*filter(None, paragraphs), WRITES])
    )
    return Annotated[NewRun, tyro.conf.subcommand(name, constructor=new_run, description=about, prefix_name=False)]


def _tell_defaults(recipe: TrainConfig) -> str:
    """What a recipe does unless it is told otherwise, in brackets, for the list of recipes."""
    length = f"{recipe.epochs} epochs" if recipe.steps is None else f"{recipe.steps} steps"
    start = f"from {recipe.init_from}" if recipe.init_from else "a new model" if recipe.model else "from --init-from"
    return f"[{length}, batch {recipe.batch}, lr {recipe.lr:g}, {recipe.precision}, {start}]"


def _with_model(recipe: TrainConfig, options: Sequence[str]) -> TrainConfig:
    """A recipe with the model that it trains over the weights that the options, or else itself, name."""

    def init_from(init_from: Weights = recipe.init_from) -> str | None:
        return init_from

    with contextlib.suppress(SystemExit):  # options that cannot be read: who reads all of them says so
        given, _ = tyro.cli(init_from, args=options, return_unknown_args=True, add_help=False, console_outputs=False)
        if given != recipe.init_from:  # the recipe's own model is for the recipe's own weights
            recipe = replace(recipe, init_from=given, model=None if given else recipe.model)
    return resolve(recipe)


def _with_losses(recipe: TrainConfig, options: Sequence[str]) -> TrainConfig:
    """A recipe with the losses that it has not, but that the options weigh: an option is made of each."""
    spelled = {name.replace("_", "-"): name for name in (*LOSSES, *recipe.losses)}  # an option may have either sign
    named = [found[1] for option in options if (found := re.match(r"--losses\.([^=]+)", option))]
    named = [spelled.get(name.replace("_", "-"), name) for name in named]
    return replace(recipe, losses=recipe.losses | {name: 0.0 for name in named if name not in recipe.losses})


def _train(run: NewRun) -> int:
    config = resolve(run.config)
    check_recipe(config)  # what cannot be trained is refused before data is made
    with join_processes() as processes:
        with processes.main_first():  # it makes what is missing, the others find it there
            if run.data is None:
                config, shards = OWN_DATA[run.recipe](config, run.out)
            else:
                shards = open_or_prepare(run.data, run.out / "shards")
        file = train_run(config, shards, run.out, processes)
    if processes.is_main:
        say(f"wrote {file}")
    return 0
