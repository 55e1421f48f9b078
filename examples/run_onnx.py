"""Segment a photo with an exported model: python examples/run_onnx.py MODEL.onnx PHOTO MASK

MODEL.onnx comes from `segclip export MODEL.onnx --labels ...`; the mask, a PNG, has label numbers as its pixel values,
in 16 bits from 256 labels on. This needs only onnxruntime, numpy and pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import ExifTags, Image

WAYS = "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"
TURNS = dict(enumerate(WAYS, 2))  # by EXIF's orientation number
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # that Pillow reads without another program

model, photo, mask = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
stored = Image.open(photo, formats=FORMATS)
stored.load()
image = stored.convert("RGB")
if stored.has_transparency_data:  # lay it on white
    image = Image.alpha_composite(Image.new("RGBA", stored.size, "white"), stored.convert("RGBA")).convert("RGB")
if turn := TURNS.get(stored.getexif().get(ExifTags.Base.Orientation, 1)):  # as the camera was held
    image = image.transpose(Image.Transpose[turn])
scale = about["side"] / min(image.size)
width, height = (max(1, round(length * scale / about["patch"])) * about["patch"] for length in image.size)
pixels = (np.asarray(image.resize((width, height))) / 255 - about["mean"]) / about["std"]
labels = np.asarray(session.run(None, {"pixels": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0])[0]
numbers = Image.fromarray(labels.astype(np.uint8 if len(about["labels"]) < 256 else np.uint16))
numbers.resize(image.size, Image.Resampling.NEAREST).save(mask, "PNG")
names = ["background", *about["labels"]]
print({names[i]: int((labels == i).sum()) for i in np.unique(labels)})
