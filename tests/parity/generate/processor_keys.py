"""Writes `shared/tests/image/processors.json`: what the keys of processor files do in transformers 5.23.

    python tests/parity/generate/processor_keys.py

For each processor class: every key that it takes (`valid_kwargs`), its defaults, and for files in which one key or two
are changed what it makes of one picture: the shape and every nth number, or nothing where it refuses. The picture's byte
at place i of (height, width, 3) is i * 37 % 251.
"""

import json
import tempfile
from pathlib import Path

import numpy
import torch
import transformers
from PIL import Image
from transformers.image_utils import SizeDict

FILE = Path(__file__).resolve().parents[3] / "shared/tests/image/processors.json"
HEIGHT, WIDTH = 21, 34
NUMBERS = 7

torch.set_num_threads(1)
pixels = (numpy.arange(HEIGHT * WIDTH * 3) * 37 % 251).astype(numpy.uint8).reshape(HEIGHT, WIDTH, 3)
PICTURE = Image.fromarray(pixels)

CLASSES = ["CLIPImageProcessor", "SiglipImageProcessor", "IdeficsImageProcessor", "Gemma3ImageProcessor", "LlavaImageProcessor"]
SMALL = {"size": {"height": 12, "width": 12}}
BASES = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 14}, "crop_size": {"height": 12, "width": 12}},
    "SiglipImageProcessor": SMALL,
    "IdeficsImageProcessor": {"image_size": 12},
    "Gemma3ImageProcessor": SMALL,
    "LlavaImageProcessor": {"size": {"shortest_edge": 14}, "crop_size": {"height": 12, "width": 12}},
}
# A key that a class does not take is tried, too: it does nothing there.
CHANGES = [
    {},
    {"do_resize": False},
    {"do_resize": False, "do_center_crop": False},
    {"do_center_crop": False},
    {"do_center_crop": True, "crop_size": {"height": 8, "width": 10}},
    {"do_center_crop": True, "crop_size": 9},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 0.01},
    {"image_mean": [0.1, 0.2, 0.3]},
    {"image_std": [0.4, 0.5, 0.6]},
    {"image_mean": 0.25, "image_std": 0.75},
    *({"resample": number} for number in range(6)),
    {"size": {"shortest_edge": 13}},
    {"size": {"shortest_edge": 13, "longest_edge": 18}},
    {"size": {"max_height": 13, "max_width": 18}},
    {"size": {"longest_edge": 18}},
    {"size": {"height": 15, "width": 13}},
    {"size": 13},
    {"size": [11, 13]},
    {"size": 13, "default_to_square": True},
    {"size": 13, "default_to_square": False},
    {"do_pad": True},
    {"do_pad": True, "pad_size": {"height": 30, "width": 40}},
    {"pad_size": {"height": 30, "width": 40}},
    {"do_convert_rgb": False},
    {"do_convert_rgb": None},
    {"input_data_format": "channels_last"},
    {"data_format": "channels_first"},
    {"disable_grouping": True},
    {"image_seq_length": 3},
    {"image_size": 11},
    {"image_num_channels": 3},
    {"use_square_size": True},
    {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 5, "pan_and_scan_max_num_crops": 3, "pan_and_scan_min_ratio_to_activate": 1.1},
    {"pan_and_scan_min_crop_size": 5},
    {"do_flip_channel_order": True},
    {"do_reduce_labels": True},
]


def seen(processor):
    made = processor(PICTURE, return_tensors="pt")
    made = made if isinstance(made, torch.Tensor) else made["pixel_values"]
    flat = made.to(torch.float64).flatten()
    step = max(1, flat.numel() // NUMBERS)
    return {"shape": list(made.shape), "numbers": [round(float(x), 6) for x in flat[::step][:NUMBERS]]}


def plain(value):
    """A default as a file says it: a size holds only what is set."""
    if isinstance(value, SizeDict):
        return {key: side for key, side in vars(value).items() if side is not None}
    return int(value) if hasattr(value, "value") else value


classes = {}
for stem in CLASSES:
    for name in (stem, f"{stem}Pil"):
        known = getattr(transformers, name)
        keys = sorted(known.valid_kwargs.__annotations__)
        fresh = known()
        defaults = {key: plain(getattr(fresh, key, None)) for key in keys}
        # What a class leaves open is None.
        defaults = {key: value for key, value in defaults.items() if value is not None}
        files = []
        for change in CHANGES:
            settings = {"image_processor_type": name, **BASES[stem], **change}
            entry = {"change": change}
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "preprocessor_config.json").write_text(json.dumps(settings))
                try:
                    entry |= seen(known.from_pretrained(folder))
                except Exception as error:  # whatever it refuses by
                    entry["refused"] = type(error).__name__
            files.append(entry)
        classes[name] = {"keys": keys, "defaults": defaults, "base": BASES[stem], "files": files}

# One file a line.
out = ["{"]
for i, (name, entry) in enumerate(classes.items()):
    head = {key: entry[key] for key in ("keys", "defaults", "base")}
    out.append(f'"{name}": {json.dumps(head)[:-1]}, "files": [')
    out.append(",\n".join(json.dumps(file) for file in entry["files"]))
    out.append("]}" + ("," if i + 1 < len(classes) else ""))
out.append("}")
FILE.write_text("\n".join(out) + "\n")
