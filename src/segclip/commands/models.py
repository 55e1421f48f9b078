"""`segclip models`: what can be opened, as tables or as JSON."""

import sys
from dataclasses import asdict
from json import dump
from typing import Any

from rich.console import Console
from rich.table import Table

from segclip.checkpoints.at_hand import cached_hub_models, place_of
from segclip.checkpoints.catalogue import CATALOGUE, SETS, Listed

PLACES = {"embedded": "in the package", "cached": "cached", "download": "to download"}
UNLISTED: dict[str, Any] = dict.fromkeys(("image", "text", "parameters", "licence", "data")) | {"figures": []}


def models(json: bool = False) -> int:
    """List the models that can be opened, what was published of them, and which are on this machine.

    Besides these, --model takes any file, folder or Hugging Face hub id of a CLIP with a plain ViT (OpenAI's,
    OpenCLIP's, transformers') or of a SegCLIP. Nothing is downloaded here.

    Args:
        json: Print JSON: name, image, text, parameters, licence, data, place (embedded, cached, download), figures.
    """
    listed = list(map(_describe, CATALOGUE))
    known = {one["name"] for one in listed}
    unlisted = [{"name": name, **UNLISTED, "place": "cached"} for name in cached_hub_models() if name not in known]
    if json:
        dump({"models": [*listed, *unlisted]}, sys.stdout, indent=1, ensure_ascii=False)
        print()
        return 0
    output = Console(highlight=False)
    output.print(_models_table([*listed, *unlisted]))
    output.print(_figures_table())
    output.print(
        "Use one: segclip segment photo.jpg --labels cat dog --out out --model NAME. Protocols and sources of the "
        "figures: segclip models --json.",
        markup=False,
    )
    return 0


def _describe(model: Listed) -> dict[str, Any]:
    figures = [{**one.miou, "head": one.head, "protocol": one.protocol, "source": one.source} for one in model.figures]
    return {**asdict(model), "figures": figures, "place": place_of(model.name)}


def _models_table(found: list[dict[str, Any]]) -> Table:
    table = Table("model", "image tower", "parameters", "licence of the weights", "trained on", "where")
    table.columns[0].overflow = "fold"  # a name is there to be copied
    table.columns[2].justify = "right"
    for model in found:
        count = model["parameters"]
        size = "" if count is None else f"{count / 1e6:,.0f} M"
        cells = (model["image"], size, model["licence"], model["data"], PLACES[model["place"]])
        table.add_row(model["name"], *(cell or "" for cell in cells))
    return table


def _figures_table() -> Table:
    table = Table("model", "head", *("VOC21", "Context60", "COCO-Object"), "source", title="published mIoU, in percent")
    table.columns[0].overflow = "fold"
    for model in CATALOGUE:
        for figure in model.figures:
            values = (f"{figure.miou[name]:.1f}" if name in figure.miou else "" for name in SETS)
            table.add_row(model.name, figure.head, *values, figure.source)
    return table
