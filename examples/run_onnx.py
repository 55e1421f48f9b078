"""Segment a photo with an exported model: python examples/run_onnx.py MODEL.onnx PHOTO MASK

MODEL.onnx comes from `segclip export MODEL.onnx --labels ...`; the mask's pixel values are label numbers. This needs
only onnxruntime, numpy and pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, photo, mask = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
image = Image.open(photo).convert("RGB")
scale = about["side"] / min(image.size)
width, height = (max(1, round(length * scale / about["patch"])) * about["patch"] for length in image.size)
pixels = (np.asarray(image.resize((width, height))) / 255 - about["mean"]) / about["std"]
labels = np.asarray(session.run(None, {"pixels": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0])[0]
Image.fromarray(labels.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST).save(mask)
names = ["background", *about["labels"]]
print({names[i]: int((labels == i).sum()) for i in np.unique(labels)})
