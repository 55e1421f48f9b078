"""Speed of inference: python benchmarks/inference.py [PART ...] [--threads N] [--photos FOLDER ...] [--every N]

Measures, on this machine's CPU with all its cores, or N threads (PARTs in this order; default: all):
  window   one 224 px window, 20 labels, ViT-B/16 (encode, score, label map), relative to a forward pass of
           transformers' CLIPVisionModel of the same size in the same precision, float32 and bfloat16; 8 bits
           relative to float32; and the same compiled
  heads    a 500x375 photo in 6 windows of 224 px, 20 labels, a plain ViT-B/16 with each dense head (encode alone, and
           all of it), relative to passes of transformers' CLIPVisionModel over the same 6 windows, float32
  dense    the same photo under the protocol `dense`, with NACLIP's head: what 1 to 1,000 labels, whose text is already
           embedded, add to its encoding, in processor time
  labels   the same window with 1 to 1,000 labels, whose text is already embedded: time, and growth of memory
  photo    a 640x480 photo with `mini` under `open`, four labels, relative to encoding alone what `open` of version 0.1
           saw of it: windows of 224 px at two scales
  onnx     the file of `segclip export` in ONNX Runtime relative to the encoder, one window and eight
  folder   `segclip segment` of a folder of 200 photos with `mini` relative to encoding the same photos alone,
           and its peak memory for a quarter of them
  changes  share of pixels that bfloat16, 8 bits and torch.compile change, `mini`, both protocols: every N-th photo of
           each FOLDER, with all of its names as labels
  command  `segclip segment` of one photo with `mini`, in a separate process: seconds and peak memory
  import   `import segclip` in a separate process, and with its public names, which import torch

Weights are random unless `mini` is named. Figures are medians; what is compared alternates. Needs the extra `test`.
On a GPU: gpu.sh.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import skimage.data
import torch
from measuring import WARM_UP, run_python
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from segclip import ModelConfig, SegCLIP, Segmenter
from segclip.checkpoints.native import save_model
from segclip.config import ImageConfig
from segclip.data.photos import open_photo
from segclip.evaluate.datasets.folder import open_folder
from segclip.export import export
from segclip.segment.encoder import DTYPES, Encoder
from segclip.segment.protocols.paper import PaperProtocol
from segclip.segment.protocols.protocol import EmbeddedLabels
from segclip.segment.windows import Windows, encode_windows, fit_size

ROUNDS = 15
SIDE = 224
LABEL_COUNTS = (1, 20, 200, 1000)
DENSE_HEADS = ("naclip", "maskclip", "clearclip", "sclip", "qk", "proxy")
COMPILED = ", compiled"
# Arguments of each Segmenter.
VARIANTS = {name + suffix: {"dtype": name, "compile": bool(suffix)} for suffix in ("", COMPILED) for name in DTYPES}
PROGRAM = """
import numpy as np
import segclip
segmenter = segclip.Segmenter({3!r}, {0!r})
segmenter.segment(np.zeros(({1}, {1}, 3), np.uint8), [f"thing number {{i}}" for i in range({2})])
"""


def main() -> None:
    parts = {
        "window": report_window, "heads": report_heads, "dense": report_dense, "labels": report_labels,
        "photo": report_photo, "onnx": report_onnx, "folder": report_folder, "command": report_command,
        "import": report_import,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description="Speed of inference.")
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*parts, "changes"])
    parser.add_argument("--photos", type=Path, nargs="+", help="for the part changes: folders as for segclip evaluate")
    parser.add_argument("--every", type=int, default=1, help="for the part changes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch; default: all cores")
    options = parser.parse_args()
    if "changes" in options.parts and not options.photos:
        parser.error("changes needs photos with masks; name their folders with --photos")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS} rounds")
    for name in options.parts or parts:
        if name == "changes":
            report_changes(options.photos, options.every)
        else:
            parts[name]()


def report_window() -> None:
    """Our whole segmentation, relative to transformers' tower alone in the same precision."""
    model, pixels = SegCLIP(ModelConfig()), torch.randn(1, 3, SIDE, SIDE)
    tower = CLIPVisionModel(CLIPVisionConfig(patch_size=16, image_size=SIDE)).eval()
    light = copy.deepcopy(tower)
    light.bfloat16()
    labels, photo = label_names(20), window()

    @torch.inference_mode()
    def forward(bare: nn.Module, x: torch.Tensor) -> None:
        bare(pixel_values=x)

    for protocol in ("paper", "open"):
        ours = {name: Segmenter(model, protocol, **options) for name, options in VARIANTS.items()}
        runs = [partial(forward, tower, pixels), partial(forward, light, pixels.to(torch.bfloat16))]
        runs += [partial(segmenter.segment, photo, labels) for segmenter in ours.values()]
        bare, bare_light, *rest = medians(runs)
        seconds = dict(zip(ours, rest, strict=True))
        cells = ", ".join(f"{name} {s * 1e3:.0f} ms" for name, s in seconds.items())
        print(f"window, {protocol}: {cells}; bare tower {bare * 1e3:.0f} ms, in bfloat16 {bare_light * 1e3:.0f} ms")
        for suffix in ("", COMPILED):
            print(
                f"window, {protocol}{suffix}: float32 {seconds['float32' + suffix] / bare:.2f} of the bare tower, "
                f"bfloat16 {seconds['bfloat16' + suffix] / bare_light:.2f} of it in bfloat16, "
                f"int8 {seconds['int8' + suffix] / seconds['float32']:.2f} of our float32"
            )


def report_heads() -> None:
    model, photo = plain_model(), dense_photo()
    tower = CLIPVisionModel(CLIPVisionConfig(patch_size=16, image_size=SIDE)).eval()
    protocol = PaperProtocol(short=336, window=SIDE, stride=SIDE // 2)
    windows = protocol.cut_photo(photo, SIDE, 16)
    pixels = model.image.normalise(np.stack(list(windows[0].crops())))

    @torch.inference_mode()
    def forward() -> None:
        tower(pixel_values=pixels)

    for head in DENSE_HEADS:
        segmenter = Segmenter(model, protocol, head=head)
        encode = partial(encode_windows, segmenter.encoder, windows)
        runs = [forward, encode, partial(segmenter.segment, photo, label_names(20))]
        bare, encoding, whole = medians(runs, rounds=7)
        print(
            f"heads, {head}: {len(pixels)} windows encoded {encoding:.2f} s, all {whole:.2f} s; bare tower {bare:.2f} "
            f"s; ratios {encoding / bare:.2f}, {whole / bare:.2f}",
            flush=True,
        )


@torch.inference_mode()
def report_dense() -> None:
    """Labels as random directions that have much in common, as texts have, so that nearly each word may win somewhere.

    Labelling is timed by itself, so that the encoder's slow and fast moments do not hide what the labels cost.
    """
    model, photo, generator = plain_model(), dense_photo(), torch.Generator().manual_seed(0)
    segmenter, width = Segmenter(model, "dense"), model.config.embed
    common = torch.randn(width, generator=generator)
    (encoded,) = segmenter.encode([photo])
    sets = [EmbeddedLabels(common + 0.5 * torch.randn(count, width, generator=generator)) for count in LABEL_COUNTS]
    label = segmenter.protocol.label_photo
    runs = [partial(label, encoded, labels, "auto", None, 1.0) for labels in sets]
    encoding, *seconds = medians([partial(segmenter.encode, [photo]), *runs], rounds=7, clock=time.process_time)
    cells = ", ".join(f"{count}: {s * 1e3:.0f} ms" for count, s in zip(LABEL_COUNTS, seconds, strict=True))
    growth = (seconds[-1] - seconds[0]) / (encoding + seconds[0])
    print(f"dense: encoded {encoding:.2f} s; labels {cells}; {growth:+.1%} from 1 to {LABEL_COUNTS[-1]:,}")


def report_labels() -> None:
    model = SegCLIP(ModelConfig())
    for protocol in ("paper", "open"):
        segmenter = Segmenter(model, protocol)
        seconds = medians([partial(segmenter.segment, window(), label_names(count)) for count in LABEL_COUNTS])
        cells = ", ".join(f"{count}: {s * 1e3:.0f} ms" for count, s in zip(LABEL_COUNTS, seconds, strict=True))
        growth = seconds[-1] / seconds[0] - 1
        print(f"labels, {protocol}: {cells}; {growth:+.1%} from 1 to {LABEL_COUNTS[-1]:,}")
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # a Segmenter copies a model object, and the copy would be the peak
            file = f"{folder}/model.safetensors"
            save_model(model, file)
            programs = [PROGRAM.format(protocol, SIDE, count, file) for count in (1, LABEL_COUNTS[-1])]
            few, many = (run_python(["-c", program])[1] for program in programs)
        print(f"labels, {protocol}: peak memory {few / 1e6:.0f} MB, {many / 1e6:.0f} MB; {many / few - 1:+.1%}")


def report_photo() -> None:
    segmenter = Segmenter("mini")
    photo = np.array(Image.fromarray(skimage.data.chelsea()).resize((640, 480)))
    sizes = [fit_size(480, 640, short, 8 * SIDE) for short in (SIDE, 2 * SIDE)]
    resized = [np.array(Image.fromarray(photo).resize((size[1], size[0]))) for size in sizes]
    former = [Windows.cut(one, (SIDE, SIDE), (SIDE // 2, SIDE // 2)) for one in resized]
    ours = partial(segmenter.segment, photo, ["cat", "dog", "car", "boat"])
    whole, windows = medians([ours, partial(encode_windows, segmenter.encoder, former)])
    count = sum(len(one.boxes) for one in former)
    print(f"photo: {whole:.2f} s; {count} windows alone {windows:.2f} s; ratio {whole / windows:.2f}")


def report_onnx() -> None:
    model = SegCLIP(ModelConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export(model, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options)

        encoder = Encoder(model)
        for count in (1, 8):
            windows = torch.randint(256, (count, SIDE, SIDE, 3), dtype=torch.uint8)
            feed = {"pixels": model.image.normalise(windows).numpy()}
            mine, theirs = medians([partial(encoder, windows), lambda feed=feed: session.run(None, feed)], rounds=7)
            print(f"onnx, {count} windows: torch {mine:.2f} s, ONNX Runtime {theirs:.2f} s; ratio {theirs / mine:.2f}")


def report_folder() -> None:
    """The command on 200 photos; the time of the encoder alone is measured on a sample and scaled up."""
    count, sample = 200, 20
    segmenter = Segmenter("mini")
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for number in (count // 4, count):
            photos = Path(folder) / f"photos{number}"
            photos.mkdir()
            for i in range(number):
                cat = np.roll(skimage.data.chelsea(), 7 * i, axis=1)
                Image.fromarray(cat).resize((500, 375)).save(photos / f"{i}.jpg")
            command = ["-m", "segclip", "segment", str(photos), "--labels", "cat", "dog", "car"]
            seconds, peaks[number] = run_python([*command, "--out", f"{folder}/out"])
        files = (photos / f"{i}.jpg" for i in range(sample))
        opened = [open_photo(file) for file in files]
        start = time.perf_counter()
        for photo in opened:
            segmenter.encode([photo])
        bare = (time.perf_counter() - start) * count / sample
        few, many = peaks.values()
        print(
            f"folder: {count} photos {seconds:.0f} s, {count / seconds:.2f} photos/s; the encoder alone {bare:.0f} s; "
            f"share {bare / seconds:.2f}; peak memory {few / 1e6:.0f} MB for {count // 4}, {many / 1e6:.0f} MB for all"
        )


def report_changes(folders: Sequence[Path], every: int) -> None:
    sets = [open_folder(folder) for folder in folders]
    for protocol in ("open", "paper"):
        plain, *others = (Segmenter("mini", protocol, **options) for options in VARIANTS.values())
        changed, pixels = np.zeros((len(sets), len(others))), np.zeros((len(sets), 1))
        for number, photos in enumerate(sets):
            names = [name for name in photos.names if name != "background"]
            for pair in photos.pairs[::every]:
                photo, _ = photos.load(pair)
                expected = plain.segment(photo, names).labels
                pixels[number] += expected.size
                changed[number] += [(other.segment(photo, names).labels != expected).sum() for other in others]
        rows = {folder.name: shares for folder, shares in zip(folders, changed / pixels, strict=True)}
        for name, row in {**rows, "all": changed.sum(axis=0) / pixels.sum()}.items():
            cells = [f"{variant} {share:.2%}" for variant, share in zip([*VARIANTS][1:], row, strict=True)]
            print(f"changes, {protocol}, {name}: {'; '.join(cells)}", flush=True)


def report_command() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "chelsea.png"
        Image.fromarray(skimage.data.chelsea()).save(photo)
        labels = ["cat", "dog", "car", "boat"]
        command = ["-m", "segclip", "segment", str(photo), "--labels", *labels, "--out", folder]
        runs = [run_python(command) for _ in range(3)]
    seconds, memory = statistics.median(s for s, _ in runs), max(m for _, m in runs)
    print(f"command: {seconds:.1f} s, peak memory {memory / 1e6:.0f} MB")


def report_import() -> None:
    programs = ("import segclip", "from segclip import *")
    alone, names = (statistics.median(run_python(["-c", program])[0] for _ in range(5)) for program in programs)
    print(f"import: {alone:.2f} s, with its public names {names:.2f} s; both include Python's start-up")


def plain_model() -> SegCLIP:
    """A plain CLIP ViT-B/16, with random weights."""
    config = ModelConfig(
        ImageConfig(trunk_layers=11, region_layers=1, class_token=True),
        grouping="patches",
        head="naclip",
        decoder_layers=0,
    )
    return SegCLIP(config).eval()


def dense_photo() -> np.ndarray:
    return np.array(Image.fromarray(skimage.data.chelsea()).resize((500, 375)))


def label_names(count: int) -> list[str]:
    return [f"thing number {i}" for i in range(count)]


def window() -> np.ndarray:
    return np.array(Image.fromarray(skimage.data.chelsea()).resize((SIDE, SIDE)))


def medians(
    functions: Sequence[Callable[[], object]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each; they alternate, so that a slow moment of the machine affects all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(WARM_UP + rounds):
        for function, times in zip(functions, seconds, strict=True):
            start = clock()
            function()
            if turn >= WARM_UP:
                times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
