"""Our file of weights: one safetensors file, the model's configuration in its metadata.

With `eight_bit`, a large weight matrix is stored as int8 with a float32 scale per row (row: index of its first axis)
under the name `NAME.scale`, and the rest as float16: small tensors, and matrices that 8 bits would change too much,
because a few values of a row are far larger than the others. Loading gives float32 again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segclip.config import ModelConfig, current_name
from segclip.model.segclip import SegCLIP
from segclip.utils.files import atomic
from segclip.utils.finite import not_finite
from segclip.utils.messages import shorten

MINI = Path(__file__).parents[1] / "assets" / "mini.safetensors"  # embedded in the package
FORMAT, FORMAT_VERSION = "segclip", "2"
EARLIER_VERSION = "1"  # of 0.1, which had other names for the image tower
SMALLEST_EIGHT_BIT = 32768  # elements; below it (centers, biases, norms) float16 costs next to nothing
MOST_CHANGED = 0.02  # of the sum of a matrix's absolute values, by rounding; of most, 0.004 to 0.009 are
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # in a folder that SegCLIP.save_pretrained wrote
EXPECTED = (
    "expected weights of SegCLIP (the authors' segclip.bin or segclip's own safetensors) or of a CLIP ViT "
    "(OpenAI's archive or state dict, OpenCLIP's, transformers' CLIPModel)"
)
LISTED = 5  # names that an error message lists before it only counts
LONGEST_NAME, LONGEST_MESSAGE = 80, 400  # letters
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)

# What no file of weights comes near, and what costs time and memory before anything is known of a hostile one.
MOST_TENSORS = 100_000  # the largest CLIP has about 2,000
LONGEST_HEADER = 16 << 20  # bytes, of safetensors
LONGEST_CONFIG = 1 << 20  # bytes, of a configuration beside weights


class CheckpointError(ValueError):
    """A file of weights that cannot be used: says which file, what it looks like, and what is expected.

    A message has names from the file and what libraries say of it, so it is made printable and kept short.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shorten(message, LONGEST_MESSAGE))


def save_model(model: SegCLIP, path: str | os.PathLike[str], *, eight_bit: bool = False) -> None:
    """Write a model to one safetensors file, which is whole whenever it is seen.

    Args:
        model: on any device; stored in float32, or as `eight_bit` says.
        path: the file; missing parent folders are made.
        eight_bit: store large matrices in 8 bits with a scale per row, the rest in 16: about a quarter of the size.

    Raises:
        CheckpointError: the file cannot be written; weights that are NaN or infinite.
    """
    path = Path(path)
    state = {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    if bad := not_finite(state):
        raise CheckpointError(
            f"{path}: not written: NaN or infinite weights in {listing(bad)}, which label nothing; its training "
            "diverged: take an earlier checkpoint"
        )
    if eight_bit:
        state = _quantise(state)
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "segclip_config": model.config.to_json()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            save_file(state, file, metadata)
            _sort_metadata(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); name another file") from error


def _sort_metadata(file: Path) -> None:
    """Order the metadata, which safetensors writes as it comes: one model is then the same bytes every time."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        opened.seek(8)
        opened.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_model(path: str | os.PathLike[str]) -> SegCLIP:
    """Read a file that `save_model` wrote: float32, in evaluation mode, every parameter trainable.

    Raises:
        CheckpointError: no such file, or not of this format, truncated, or its tensors do not fit its configuration.
    """
    path = Path(path)
    state, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file of {listing(state)}, without a segclip configuration in its metadata; "
            "expected a file written by segclip.save_model or `segclip convert`"
        )
    return load_state(state, metadata, path)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these are our own names: a file without our metadata, as `SegCLIP.save_pretrained` writes it."""
    return "image.projection" in state


def read(state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """The model of a file without our metadata, by the config.json beside it.

    Raises:
        CheckpointError: no config.json, or not ours, or the tensors do not fit it.
    """
    file = path.with_name(CONFIG_FILE)
    try:
        text = read_config(file)
        config = None if text is None else ModelConfig.from_json(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: {error}; expected the {CONFIG_FILE} that SegCLIP.save_pretrained wrote"
        ) from error
    if config is None:
        raise CheckpointError(
            f"{path}: weights of a SegCLIP without their configuration; put the {CONFIG_FILE} that was written with "
            "them beside them"
        )
    return build_model(config, to_float32(state, path), path)


def read_config(file: Path) -> str | None:
    """The text of a configuration beside weights; None where there is no such file.

    Raises:
        OSError, ValueError: it cannot be read, is no text, or is too long for a configuration.
    """
    if not file.is_file():
        return None
    if (size := file.stat().st_size) > LONGEST_CONFIG:
        raise ValueError(f"{size:,} bytes, more than a configuration has")
    return file.read_text("utf-8")


def load_state(state: dict[str, Tensor], metadata: Mapping[str, str], path: Path) -> SegCLIP:
    """The model of a file in our format that `read_safetensors` has read."""
    version = metadata.get("format_version")
    if version == EARLIER_VERSION:
        state = {current_name(name): tensor for name, tensor in state.items()}
    elif version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: segclip file of format version {version}; expected at most {FORMAT_VERSION}: update segclip"
        )
    try:
        config = ModelConfig.from_json(metadata.get("segclip_config", ""))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; the file is damaged or of another version of segclip") from error
    return build_model(config, to_float32(_dequantise(state, path), path), path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file.

    Raises:
        CheckpointError: truncated, or no safetensors.
    """
    try:
        with path.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        size = path.stat().st_size
        if LONGEST_HEADER < header <= size:
            raise CheckpointError(f"{path}: a header of {header:,} bytes; expected at most {LONGEST_HEADER:,}")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MOST_TENSORS:
                raise CheckpointError(f"{path}: {len(names):,} tensors; expected at most {MOST_TENSORS:,}")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or 'no such file'}); give a safetensors file"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile header can raise anything
        raise CheckpointError(
            f"{path}: {path.stat().st_size:,} bytes that are no whole safetensors file "
            f"({shorten(str(error), 200)}); expected one: it is truncated or of another format, so copy or download it "
            "again"
        ) from error


def build_model(config: ModelConfig, state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """A model of this configuration holding exactly these float32 tensors, in evaluation mode.

    Raises:
        CheckpointError: missing or extra names, wrong shapes; a part that is in no table here.
    """
    blocks = (
        config.image.trunk_layers
        + config.image.region_layers
        + config.text.layers
        + config.decoder_layers
        + config.center_blocks
    )
    if blocks > len(state):  # each has a tensor; none is made on the configuration's word alone
        raise CheckpointError(
            f"{path}: a configuration of {blocks} blocks, but {len(state)} tensors; the file is damaged or of another "
            "model"
        )
    try:
        with torch.device("meta"):  # no random weights are drawn, none are left: every name is assigned below
            model = SegCLIP(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    check_state(model.state_dict(), state, path)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True).eval()


def to_float32(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same weights in float32. Raises CheckpointError for whole numbers, NaN and infinite numbers among them."""
    others = [f"{n} {str(t.dtype).removeprefix('torch.')}" for n, t in state.items() if t.dtype not in FLOATS]
    if others:
        raise CheckpointError(
            f"{path}: weights that are no floating-point numbers: {listing(others)}; convert the original to float32"
        )
    state = {name: tensor.float() for name, tensor in state.items()}
    if bad := not_finite(state):
        raise CheckpointError(
            f"{path}: NaN or infinite weights in {listing(bad)}; its training diverged or the file is damaged: take an "
            "earlier checkpoint, or copy it again"
        )
    return state


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError where the names or shapes of `found` are not those of `expected`."""
    problems = []
    if missing := expected.keys() - found.keys():
        problems.append(f"missing: {listing(missing)}")
    if extra := found.keys() - expected.keys():
        problems.append(f"extra: {listing(extra)}")
    shapes = [
        f"{name} {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if shapes:
        problems.append(f"wrong shapes: {listing(shapes, '; ')}")
    if problems:
        raise CheckpointError(f"{path}: its tensors are not those of a SegCLIP model: {'. '.join(problems)}")


def listing(names: Iterable[str], separator: str = ", ") -> str:
    """The first few names, and how many there are."""
    ordered = sorted(names)
    first = [shorten(name, LONGEST_NAME) for name in ordered[:LISTED]]
    return f"{len(ordered)} ({separator.join(first + ['...'] * (len(ordered) > LISTED))})"


def _quantise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = {}
    for name, tensor in state.items():
        if tensor.ndim == 0:
            stored[name] = tensor
        elif tensor.ndim >= 2 and tensor.numel() >= SMALLEST_EIGHT_BIT and (rounded := _round(tensor.flatten(1))):
            rows, scale = rounded
            stored[name], stored[f"{name}.scale"] = rows.view_as(tensor), scale
        else:
            half = tensor.half()
            stored[name] = half if half.isfinite().all() else tensor
    return stored


def _round(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """8 bits and the scale of each row; None where that would change the matrix too much."""
    scale = rows.abs().amax(dim=-1) / 127
    rounded = (rows / scale.clamp(min=torch.finfo().tiny)[:, None]).round().clamp(-127, 127)
    changed = (rounded * scale[:, None] - rows).abs().sum()
    return None if changed > MOST_CHANGED * rows.abs().sum() else (rounded.to(torch.int8), scale)


def _dequantise(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    scales = {name: state.pop(f"{name}.scale", None) for name, t in list(state.items()) if t.dtype == torch.int8}
    for name, scale in scales.items():
        tensor = state[name]
        if tensor.ndim == 0 or scale is None or scale.shape != tensor.shape[:1] or scale.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {name} is in 8 bits, but {name}.scale, one number per row, is not there")
        state[name] = tensor.float().mul_(scale.view(-1, *[1] * (tensor.ndim - 1)))
    return state
