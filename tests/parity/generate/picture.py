"""Writes `shared/tests/image/`: what the picture layer must agree with, and files in every format it reads.

    python tests/parity/generate/picture.py

`reference.safetensors` holds pictures and what Pillow, torchvision and torch make of them, named by what was done, the
picture, and the height and width asked for; see `shared/tests/image/reference.rs`. `files.safetensors` holds what
Pillow reads in the files beside it. torchvision's numbers are those of a machine with AVX2.
"""

from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as F

FOLDER = Path(__file__).resolve().parents[3] / "shared/tests/image"
torch.set_num_threads(1)
assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
TORCHVISION = {
    "nearest": F.InterpolationMode.NEAREST_EXACT,
    "bilinear": F.InterpolationMode.BILINEAR,
    "bicubic": F.InterpolationMode.BICUBIC,
}
# Down, up, both, one side kept, down to nothing, very wide.
SIZES = {
    "photo": [(31, 23), (64, 90), (80, 20), (47, 40), (13, 61), (1, 1), (5, 100), (48, 61)],
    "dot": [(1, 1), (7, 5)],
    "wide": [(3, 30), (9, 400), (1, 7)],
    "tall": [(40, 2), (11, 11)],
}


def photo(height, width, seed):
    """Slopes, a disc, stripes and noise, with black and white among them: (height, width, 3) bytes."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width] / max(height, width)
    base = numpy.stack([x, y, 1 - x * y], -1) * 255
    base[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.03] = [255, 255, 255]
    base[numpy.sin(60 * x) > 0.9] = [0, 0, 0]
    return (base + random.normal(0, 25, base.shape)).round().clip(0, 255).astype(numpy.uint8)


PICTURES = {"photo": photo(48, 61, 1), "dot": photo(1, 1, 2), "wide": photo(3, 700, 3), "tall": photo(333, 2, 4)}


def resized(out):
    for name, picture in PICTURES.items():
        out[f"picture.{name}"] = torch.tensor(picture)
        tensor = torch.tensor(picture).permute(2, 0, 1).contiguous()
        for height, width in SIZES[name]:
            size = f"{name}.{height}.{width}"
            for number, filter in PILLOW.items():
                made = Image.fromarray(picture).resize((width, height), resample=number)
                out[f"pillow.{filter}.{size}"] = torch.tensor(numpy.array(made))
            for filter, mode in TORCHVISION.items():
                try:
                    made = F.resize(tensor, [height, width], interpolation=mode, antialias=True)
                except RuntimeError as error:
                    # torch 2.9.1 stops at some pictures of one pixel.
                    assert "INTERNAL ASSERT" in str(error)
                    continue
                out[f"torchvision.{filter}.{size}"] = made.permute(1, 2, 0)


def grids(out):
    """Tables of positions: (batch, height, width, channels)."""
    random = torch.Generator().manual_seed(5)
    for rows, columns, height, width in [(7, 7, 10, 12), (4, 5, 4, 5), (16, 16, 9, 7), (1, 3, 4, 4)]:
        grid = torch.randn((2, rows, columns, 3), generator=random)
        made = torch.nn.functional.interpolate(
            grid.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False
        )
        out[f"grid.{rows}.{columns}"] = grid
        out[f"bicubic.{rows}.{columns}.{height}.{width}"] = made.permute(0, 2, 3, 1)


def over_white(image):
    """As transformers 5 has it."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def files(out):
    picture = photo(20, 30, 6)
    image = Image.fromarray(picture)
    alpha = numpy.linspace(0, 255, 600).round().astype(numpy.uint8).reshape(20, 30)
    seen = Image.fromarray(numpy.dstack([picture, alpha]), "RGBA")
    grey = image.convert("L")
    soft = image.resize((8, 6), Image.Resampling.BOX).resize((30, 20), Image.Resampling.BICUBIC)

    def write(name, image, **options):
        image.save(FOLDER / name, **options)
        with Image.open(FOLDER / name) as image:
            image.seek(0)
            out[name] = torch.tensor(numpy.array(over_white(ImageOps.exif_transpose(image))))
            if "A" in image.getbands() or "transparency" in image.info:
                out[f"{name}.dropped"] = torch.tensor(numpy.array(image.convert("RGB")))

    write("rgb.png", image)
    write("rgba.png", seen)
    write("grey.png", grey)
    write("grey_alpha.png", Image.merge("LA", [grey, Image.fromarray(alpha)]))
    write("palette.png", image.quantize(16))
    write("palette_alpha.png", image.quantize(16), transparency=3)
    write("bits.png", image.convert("1"))
    write("soft.jpg", soft, quality=92)
    write("progressive.jpg", soft, quality=92, progressive=True)
    write("grey.jpg", soft.convert("L"), quality=92)
    write("cmyk.jpg", soft.convert("CMYK"), quality=92)
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        write(f"turned_{turn}.jpg", soft, quality=92, exif=exif)
    write("rgb.webp", image, lossless=True)
    write("rgba.webp", seen, lossless=True, exact=True)
    write("rgb.bmp", image)
    write("rgb.tiff", image)
    write("packed.tiff", image, compression="tiff_lzw")
    write("animated.gif", image, save_all=True, append_images=[soft, grey.convert("RGB")], duration=40)
    # Pillow clips grey of 16 bits at 255; here its upper byte is taken, as Pillow does for colours.
    deep = (numpy.arange(600, dtype=numpy.uint32) * 109).astype(numpy.uint16).reshape(20, 30)
    Image.fromarray(deep).save(FOLDER / "grey16.png")
    out["grey16.png"] = torch.tensor((deep >> 8).astype(numpy.uint8))[..., None].repeat(1, 1, 3)
    whole = (FOLDER / "soft.jpg").read_bytes()
    (FOLDER / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, parts in {"reference": (resized, grids), "files": (files,)}.items():
        out = {}
        for part in parts:
            part(out)
        save_file({key: value.contiguous().clone() for key, value in out.items()}, FOLDER / f"{name}.safetensors")
