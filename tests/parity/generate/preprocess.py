"""Cases of what processors make of pictures: `preprocess` of every type, by torchvision and by Pillow.

    python tests/parity/generate/preprocess.py [part of a name]...

torchvision's bytes are those of a machine with AVX2.
"""

import json
import shutil
import sys

import numpy
import PIL
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import models

from common import CASES, run_all, seed_of

assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
TORCHVISION = f"torchvision {torchvision.__version__.partition('+')[0]}"
PILLOW = f"Pillow {PIL.__version__}"


def picture(name, height, width):
    """Slopes, a disc, stripes and noise that reach black and white: (height, width, 3) bytes."""
    random = numpy.random.default_rng(seed_of(name))
    y, x = numpy.mgrid[0:height, 0:width] / max(height, width)
    base = numpy.stack([x, y, 1 - x * y], -1) * 255
    base[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.03] = [255, 255, 255]
    base[numpy.sin(50 * x) > 0.9] = [0, 0, 0]
    return (base + random.normal(0, 30, base.shape)).round().clip(0, 255).astype(numpy.uint8)


def case(name, system, reference, settings, image, pixels, note, file="preprocessor_config.json"):
    folder = CASES / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / file).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    save_file({"image": torch.tensor(image).long()}, folder / "inputs.safetensors")
    pixels = torch.as_tensor(numpy.stack([numpy.asarray(one) for one in pixels]))
    pixels = pixels.float() if pixels.is_floating_point() else pixels.long()
    assert pixels.float().std() > 0
    save_file({"pixel_values": pixels.contiguous()}, folder / "expected.safetensors")
    about = {
        "system": system, "reference": reference, "call": "preprocess", "options": {},
        "atol": 1e-5, "rtol": 0.0, "note": note,
    }
    (folder / "case.json").write_text(json.dumps(about, indent=2) + "\n")
    print(f"{name:44} {tuple(pixels.shape)}")


CLASSES = {
    "CLIPImageProcessor": (models.clip, "CLIP"),
    "SiglipImageProcessor": (models.siglip, "SigLIP"),
    "IdeficsImageProcessor": (models.idefics, "Flamingo"),
    "Gemma3ImageProcessor": (models.gemma3, "Med-PaLM M"),
    "LlavaImageProcessor": (models.llava, "Med-PaLM M"),
}
CASES_OF = {
    # name: type, settings, height and width of the picture, note
    "preprocess/clip_shrink": ("CLIPImageProcessor", {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}, (67, 120), "the short side shrinks, an odd rest is cut"),
    "preprocess/clip_tall": ("CLIPImageProcessor", {"size": 30, "crop_size": 27}, (131, 50), "sizes as bare numbers, a tall picture, an odd crop"),
    "preprocess/clip_zeros": ("CLIPImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 36}}, (41, 60), "the crop is larger than the picture"),
    "preprocess/clip_no_resize": ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 24, "width": 51}}, (37, 40), "one side is cut, one is filled with zeros"),
    "preprocess/clip_squash_bilinear": ("CLIPImageProcessor", {"size": {"height": 24, "width": 32}, "crop_size": {"height": 24, "width": 32}, "resample": 2}, (50, 33), "height and width given, bilinear"),
    "preprocess/clip_nearest": ("CLIPImageProcessor", {"size": {"shortest_edge": 25}, "do_center_crop": False, "resample": 0}, (61, 44), "nearest, no crop"),
    "preprocess/clip_lanczos": ("CLIPImageProcessor", {"size": {"shortest_edge": 25}, "crop_size": 25, "resample": 1}, (61, 44), "Lanczos on torchvision before 0.27 is bicubic"),
    "preprocess/clip_edges": ("CLIPImageProcessor", {"size": {"shortest_edge": 30, "longest_edge": 50}, "do_center_crop": False}, (40, 100), "shortest and longest edge"),
    "preprocess/clip_only_normalised": ("CLIPImageProcessor", {"size": 20, "crop_size": 20, "do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]}, (30, 31), "not scaled"),
    "preprocess/clip_only_scaled": ("CLIPImageProcessor", {"size": 20, "crop_size": 20, "do_normalize": False, "rescale_factor": 0.01}, (30, 31), "not normalised, another factor"),
    "preprocess/clip_bytes": ("CLIPImageProcessor", {"size": 20, "crop_size": 20, "do_normalize": False, "do_rescale": False}, (31, 30), "neither scaled nor normalised: integers"),
    "preprocess/clip_padded": ("CLIPImageProcessor", {"size": 20, "do_center_crop": False, "do_pad": True, "pad_size": {"height": 34, "width": 41}}, (30, 50), "zeros after normalising, right and below"),
    "preprocess/clip_pillow": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}, (67, 120), "Pillow's arithmetic"),
    "preprocess/clip_pillow_tall": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 30}, "crop_size": {"height": 27, "width": 33}}, (140, 50), "Pillow takes columns first; odd zeros come first"),
    "preprocess/clip_pillow_lanczos": ("CLIPImageProcessorPil", {"size": {"height": 40, "width": 21}, "do_center_crop": False, "resample": 1}, (33, 64), "Pillow's Lanczos, up and down"),
    "preprocess/clip_pillow_box": ("CLIPImageProcessorPil", {"size": {"height": 17, "width": 21}, "do_center_crop": False, "resample": 4}, (40, 64), "Pillow's box"),
    "preprocess/clip_pillow_hamming": ("CLIPImageProcessorPil", {"size": {"height": 17, "width": 21}, "do_center_crop": False, "resample": 5}, (40, 64), "Pillow's Hamming"),
    "preprocess/siglip": ("SiglipImageProcessor", {"size": {"height": 28, "width": 28}}, (37, 71), "squashed, bicubic"),
    "preprocess/siglip_upscale": ("SiglipImageProcessor", {"size": {"height": 45, "width": 40}}, (19, 23), "enlarged, not square"),
    "preprocess/siglip_pillow": ("SiglipImageProcessorPil", {"size": {"height": 28, "width": 28}}, (90, 33), "Pillow takes columns first"),
    "preprocess/idefics": ("IdeficsImageProcessor", {"image_size": 28}, (61, 43), "image_size squashes"),
    "preprocess/idefics_pillow": ("IdeficsImageProcessorPil", {"size": 28}, (24, 80), "Pillow's arithmetic, a bare size is a square"),
    "preprocess/medgemma": ("Gemma3ImageProcessor", {"size": {"height": 28, "width": 28}}, (50, 77), "squashed, bilinear"),
    "preprocess/medgemma_upscale": ("Gemma3ImageProcessor", {"size": {"height": 40, "width": 40}}, (13, 31), "enlarged"),
    "preprocess/medgemma_pan_and_scan": ("Gemma3ImageProcessor", {"size": {"height": 24, "width": 24}, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2}, (40, 131), "the picture and three pieces"),
    "preprocess/medgemma_pan_and_scan_tall": ("Gemma3ImageProcessor", {"size": {"height": 24, "width": 24}, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 30, "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2}, (101, 36), "a tall picture and as many pieces as are large enough"),
    "preprocess/medgemma_pan_and_scan_square": ("Gemma3ImageProcessor", {"size": {"height": 24, "width": 24}, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2}, (40, 44), "not long enough for pieces"),
    "preprocess/medgemma_pillow": ("Gemma3ImageProcessorPil", {"size": {"height": 24, "width": 24}}, (60, 31), "Pillow's arithmetic"),
    "preprocess/llava_square": ("LlavaImageProcessor", {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "do_pad": True}, (40, 71), "a square of the mean colour first"),
    "preprocess/llava_square_tall": ("LlavaImageProcessor", {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "do_pad": True}, (72, 41), "an odd rest on one side"),
}


def preprocess(name):
    kind, settings, size, note = CASES_OF[name]
    module, system = CLASSES[kind.removesuffix("Pil")]
    image = picture(name, *size)
    processor = getattr(module, kind)(**settings)
    pixels = processor(images=image)
    pixels = pixels if isinstance(pixels, (list, torch.Tensor)) else pixels["pixel_values"]
    backend = PILLOW if kind.endswith("Pil") else TORCHVISION
    about = f"transformers {transformers.__version__} {kind} ({backend})"
    case(name, system, about, {"image_processor_type": kind, **settings}, image, pixels, note)


run_all({name: preprocess for name in CASES_OF}, sys.argv[1:])
