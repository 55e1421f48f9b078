"""Segment a video: python examples/video.py IN OUT LABEL... [--every N]

Writes a video in which the labels are tinted. Needs PyAV (pip install av), which segclip does not bring.
"""

import argparse

import av
import numpy as np

import segclip
from segclip.visualize import palette

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("source")
parser.add_argument("target")
parser.add_argument("labels", nargs="+")
parser.add_argument("--every", type=int, default=5, help="segment one frame of so many; the others take its labels")
options = parser.parse_args()

segmenter = segclip.Segmenter("mini")
colours = palette(len(options.labels) + 1)
with av.open(options.source, "r") as source, av.open(options.target, "w") as target:
    video = source.streams.video[0]
    stream = target.add_stream("mpeg4", rate=video.average_rate or 25)
    stream.width, stream.height, stream.pix_fmt = video.width // 2 * 2, video.height // 2 * 2, "yuv420p"
    labels = np.zeros((video.height, video.width), np.int32)
    for number, frame in enumerate(source.decode(video)):  # pyright: ignore[reportAttributeAccessIssue]
        pixels = frame.to_ndarray(format="rgb24")
        if number % options.every == 0:
            result = segmenter.segment(pixels, options.labels)
            labels = result.labels
            print(f"frame {number}: {result}")
        tinted = np.where(labels[..., None] > 0, pixels // 2 + colours[labels] // 2, pixels).astype(np.uint8)
        shown = av.VideoFrame.from_ndarray(tinted[: stream.height, : stream.width], format="rgb24")
        target.mux(stream.encode(shown))
    target.mux(stream.encode())
