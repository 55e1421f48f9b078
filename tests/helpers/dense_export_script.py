"""Exports a plain CLIP by the command; a process of its own, as torch cannot trace through the tests' type checks."""

import sys

from segclip.cli import main

LABELS = ["cup", "table", "spoon"]

if __name__ == "__main__":
    weights, folder = sys.argv[1:]
    commands = (
        ["labels.onnx", "--head", "sclip", "--labels", *LABELS],
        ["proxy.onnx", "--head", "proxy"],
        ["k-means.pt2", "--grouping", "k-means", "--centers", "3"],
    )
    sys.exit(max(main(["export", f"{folder}/{name}", *rest, "--model", weights]) for name, *rest in commands))
