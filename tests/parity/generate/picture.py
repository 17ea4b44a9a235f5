"""Writes `shared/tests/image/`: what the picture layer must agree with, and files in every format it reads.

    python tests/parity/generate/picture.py

`reference.safetensors` holds pictures and what Pillow, torchvision and torch make of them, named by what was done, the
picture, and the height and width asked for; see `shared/tests/image/reference.rs`. `files.safetensors` holds what
Pillow reads in the files beside it. torchvision's numbers are those of a machine with AVX2.

`kinds.safetensors` holds tiny files of every kind (`NAME.file`), most of them written sample by sample, and what Pillow 13
makes of each: `NAME.dropped` by `convert("RGB")`, and where that is something else `NAME.white` by transformers 5.23's
`convert_to_rgb`. A file that Pillow refuses has neither.
"""

import io
import struct
import warnings
import zlib

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
    write("grey16.png", Image.fromarray((numpy.arange(600, dtype=numpy.uint16)).reshape(20, 30)))
    whole = (FOLDER / "soft.jpg").read_bytes()
    (FOLDER / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])


# Tiny files of every kind.
WIDTH, HEIGHT = 5, 3


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(rows, depth):
    """Rows of samples as bytes, each row from a byte of its own."""
    out = []
    for row in rows:
        if depth == 16:
            out.append(b"".join(struct.pack(">H", int(v)) for v in row))
            continue
        bits = "".join(format(int(v), f"0{depth}b") for v in row)
        bits += "0" * (-len(bits) % 8)
        out.append(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
    return out


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(samples, depth, colour, interlaced=False, extra=(), end=True):
    """`samples`: (height, width, channels)."""
    height, width, _ = samples.shape
    passes = [(0, 0, 1, 1)] if not interlaced else ADAM7
    raw = b""
    for x, y, dx, dy in passes:
        part = samples[y::dy, x::dx]
        if part.size:
            raw += b"".join(b"\0" + row for row in packed(part.reshape(part.shape[0], -1), depth))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *(chunk(*e) for e in extra), chunk(b"IDAT", zlib.compress(raw, 9))]
    return b"".join(parts + [chunk(b"IEND", b"")] * end)


def tiff(samples, photometric, bits, kind="B", order="<", form=1, extra=(), planar=1, tags=(), big=False, tile=None):
    """One strip, uncompressed. `samples`: (height, width, channels)."""
    height, width, channels = samples.shape

    def pack(values):
        if bits < 8:
            return b"".join(packed(values.reshape(values.shape[0], -1), bits))
        return b"".join(struct.pack(order + kind, v) for v in values.reshape(-1).tolist())
    if planar == 2:
        strips = [pack(samples[..., i]) for i in range(channels)]
    else:
        strips = [pack(samples)]
    entries = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * channels), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, None), 277: (3, [channels]), 278: (3, [height]), 279: (4, [len(s) for s in strips]), 284: (3, [planar]),
        339: (3, [form] * channels),
    }
    if extra:
        entries[338] = (3, list(extra))
    for tag, (t, v) in tags:
        entries[tag] = (t, v)
    if tile:
        for tag in (273, 278, 279):
            entries.pop(tag)
        padded = numpy.zeros((tile, tile, channels), samples.dtype)
        padded[:height, :width] = samples
        strips = [pack(padded)]
        entries |= {322: (3, [tile]), 323: (3, [tile]), 324: (4, None), 325: (4, [len(strips[0])])}
    start = 16 if big else 8
    entry, count, offset = (20, "Q", "Q") if big else (12, "H", "I")
    slot = 8 if big else 4
    directory = start + struct.calcsize(order + count) + len(entries) * entry + slot
    sizes = {3: "H", 4: "I"}
    where, blob = directory, b""
    offsets = []
    for s in strips:
        offsets.append(where + len(blob))
        blob += s + b"\0" * (len(s) % 2)
    out = struct.pack(order + count, len(entries))
    for tag in sorted(entries):
        t, v = entries[tag]
        v = offsets if v is None else v
        body = struct.pack(order + sizes[t] * len(v), *v)
        out += struct.pack(order + "HH" + ("Q" if big else "I"), tag, t, len(v))
        if len(body) <= slot:
            out += body + b"\0" * (slot - len(body))
        else:
            out += struct.pack(order + offset, where + len(blob))
            blob += body + b"\0" * (len(body) % 2)
    out += struct.pack(order + offset, 0)
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, start)
    else:
        head = mark + struct.pack(order + "HI", 42, start)
    return head + out + blob


def bmp(rows, bits, compression=0, palette=b"", masks=b"", header=40, down=False, colours=0):
    """`rows`: bytes of the pixels, bottom row first unless `down`."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, WIDTH, -HEIGHT if down else HEIGHT, 1, bits, compression, len(rows), 0, 0, colours, 0)
        info += masks + b"\0" * (header - 40 - len(masks)) if header > 40 else masks
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


def aligned(row):
    return row + b"\0" * (-len(row) % 4)


def gif(frame, screen, transparent=None, background=0, palette=8):
    """One frame of (left, top, width, height) whose pixels count up, on a screen."""
    left, top, width, height = frame
    table = b"".join(bytes([30 * i, 255 - 20 * i, 7 * i]) for i in range(palette))
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | (palette.bit_length() - 2), background, 0) + table
    if transparent is not None:
        out += b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    out += b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0)
    # Codes of four bits, with a clear before each pixel.
    codes = [c for i in range(width * height) for c in (8, i % palette)] + [9]
    bits = "".join(format(c, "04b")[::-1] for c in codes)
    bits += "0" * (-len(bits) % 8)
    body = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    return out + b"\x03" + bytes([len(body)]) + body + b"\0;"


def kinds():
    random = numpy.random.default_rng(11)
    def samples(top, channels):
        return random.integers(0, top, (HEIGHT, WIDTH, channels), endpoint=True)
    made = {}
    names = {0: "grey", 2: "rgb", 3: "palette", 4: "grey_alpha", 6: "rgba"}
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    table = bytes(random.integers(0, 256, 3 * 256).tolist())
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            if colour == 3:
                extra = [(b"PLTE", table[: 3 * min(40, 1 << depth)])]
            else:
                extra = []
            s = samples(39 if (colour, depth) == (3, 8) else (1 << depth) - 1, channels[colour])
            made[f"{names[colour]}{depth}.png"] = png(s, depth, colour, extra=extra)
            if depth in (1, 4, 16) or colour == 3:
                made[f"{names[colour]}{depth}_interlaced.png"] = png(s, depth, colour, True, extra)
    g = samples(255, 1)
    made["no_end.png"] = png(samples(255, 3), 8, 2, end=False)
    made["palette8_no_end.png"] = png(g % 4, 8, 3, extra=[(b"PLTE", table[:12])], end=False)
    made["grey8_clear.png"] = png(g, 8, 0, extra=[(b"tRNS", struct.pack(">H", int(g[1, 1, 0])))])
    for depth in (1, 2, 4):
        g = samples((1 << depth) - 1, 1)
        made[f"grey{depth}_clear.png"] = png(g, depth, 0, extra=[(b"tRNS", struct.pack(">H", int(g[1, 1, 0])))])
    g = samples(300, 1)
    made["grey16_small.png"] = png(g, 16, 0)
    g[1, 1] = 77
    made["grey16_small_clear.png"] = png(g, 16, 0, extra=[(b"tRNS", struct.pack(">H", 77))])
    g = samples(65535, 1)
    made["grey16_clear.png"] = png(g, 16, 0, extra=[(b"tRNS", struct.pack(">H", int(g[1, 1, 0])))])
    g = samples(255, 3)
    made["rgb8_clear.png"] = png(g, 8, 2, extra=[(b"tRNS", struct.pack(">HHH", *g[1, 1].tolist()))])
    g = samples(65535, 3)
    made["rgb16_clear.png"] = png(g, 16, 2, extra=[(b"tRNS", struct.pack(">HHH", *g[1, 1].tolist()))])
    p = samples(3, 1)
    made["palette2_alphas.png"] = png(p, 2, 3, extra=[(b"PLTE", table[:12]), (b"tRNS", bytes([0, 90, 200]))])
    made["palette2_one_clear.png"] = png(p, 2, 3, extra=[(b"PLTE", table[:12]), (b"tRNS", bytes([255, 0]))])
    made["palette4_short.png"] = png(samples(15, 1), 4, 3, extra=[(b"PLTE", table[:12])])
    made["palette8_short.png"] = png(samples(255, 1), 8, 3, extra=[(b"PLTE", table[:12])])
    made["palette8_short_alphas.png"] = png(samples(255, 1), 8, 3, extra=[(b"PLTE", table[:12]), (b"tRNS", bytes([9, 80]))])

    for bits in (1, 2, 4, 8):
        n = 1 << bits
        cm = random.integers(0, 65536, 3 * n).tolist()
        made[f"palette{bits}.tiff"] = tiff(samples(n - 1, 1), 3, bits, tags=[(320, (3, cm))])
        s = samples(n - 1, 1)
        made[f"grey{bits}.tiff"] = tiff(s, 1, bits)
        made[f"grey{bits}_white_is_zero.tiff"] = tiff(s, 0, bits)
    small = random.normal(120, 120, (HEIGHT, WIDTH, 1)).astype(numpy.float32)
    made["float32.tiff"] = tiff(small, 1, 32, "f", form=3)
    made["float32_big_endian.tiff"] = tiff(small, 1, 32, "f", ">", form=3)
    made["float64.tiff"] = tiff(small.astype(float), 1, 64, "d", form=3)
    made["float32_rgb.tiff"] = tiff(random.random((HEIGHT, WIDTH, 3)).astype(numpy.float32), 2, 32, "f", form=3)
    s = samples(700, 1)
    for order, name in (("<", ""), (">", "_big_endian")):
        made[f"grey16{name}.tiff"] = tiff(s * 90, 1, 16, "H", order)
        made[f"grey16_signed{name}.tiff"] = tiff(s - 300, 1, 16, "h", order, form=2)
        made[f"grey32{name}.tiff"] = tiff(s, 1, 32, "I", order)
        made[f"grey32_signed{name}.tiff"] = tiff(s - 300, 1, 32, "i", order, form=2)
        made[f"rgb16{name}.tiff"] = tiff(samples(65535, 3), 2, 16, "H", order)
    made["grey16_white_is_zero.tiff"] = tiff(s * 90, 0, 16, "H")
    made["grey8_signed.tiff"] = tiff(samples(255, 1) - 128, 1, 8, "b", form=2)
    made["rgb8.tiff"] = tiff(samples(255, 3), 2, 8)
    made["rgb8_planes.tiff"] = tiff(samples(255, 3), 2, 8, planar=2)
    made["rgb8_tile.tiff"] = tiff(samples(255, 3), 2, 8, tile=16)
    made["rgb8_bigtiff.tiff"] = tiff(samples(255, 3), 2, 8, big=True)
    made["rgba8.tiff"] = tiff(samples(255, 4), 2, 8, extra=[2])
    a = samples(255, 4)
    a[..., :3] = a[..., :3] * a[..., 3:] // 255
    made["rgba8_premultiplied.tiff"] = tiff(a, 2, 8, extra=[1])
    made["rgbx8.tiff"] = tiff(samples(255, 4), 2, 8, extra=[0])
    made["rgba16.tiff"] = tiff(samples(65535, 4), 2, 16, "H", extra=[2])
    made["grey_alpha8.tiff"] = tiff(samples(255, 2), 1, 8, extra=[2])
    made["cmyk8.tiff"] = tiff(samples(255, 4), 5, 8)
    made["cmyk16.tiff"] = tiff(samples(65535, 4), 5, 16, "H")
    made["lab8.tiff"] = tiff(samples(255, 3), 8, 8)
    rgb = samples(255, 3).astype(numpy.uint8)
    def saved(form, image, **options):
        f = io.BytesIO()
        image.save(f, form, **options)
        return f.getvalue()
    image = Image.fromarray(rgb)
    bits = Image.fromarray(((rgb[..., 0] > 120) * 255).astype(numpy.uint8)).convert("1")
    for c in ("packbits", "tiff_adobe_deflate", "tiff_deflate", "zstd"):
        made[f"rgb8_{c}.tiff"] = saved("TIFF", image, compression=c)
    for c in ("group3", "group4", "tiff_ccitt", "packbits"):
        made[f"bits_{c}.tiff"] = saved("TIFF", bits, compression=c)
    made["rgb8_predictor.tiff"] = saved("TIFF", image, compression="tiff_lzw", tiffinfo={317: 2})
    made["rgb8_jpeg.tiff"] = saved("TIFF", image.resize((8, 8), Image.Resampling.BICUBIC), compression="jpeg", quality=95)
    made["turned.tiff"] = saved("TIFF", image, tiffinfo={274: 6})

    def quads(n):
        return b"".join(table[3 * i : 3 * i + 3] + b"\0" for i in range(n))
    for depth in (1, 4, 8):
        s = samples(min(40, 1 << depth) - 1, 1)
        rows = b"".join(aligned(r) for r in packed(s[::-1].reshape(HEIGHT, -1), depth))
        made[f"palette{depth}.bmp"] = bmp(rows, depth, palette=quads(min(40, 1 << depth)), colours=40 if depth == 8 else 0)
        if depth == 8:
            made["palette8_few.bmp"] = bmp(b"".join(aligned(r) for r in packed((s % 3).reshape(HEIGHT, -1), 8)), 8, palette=quads(3), colours=3)
            made["palette8_short.bmp"] = bmp(b"".join(aligned(r) for r in packed((s % 6).reshape(HEIGHT, -1), 8)), 8, palette=quads(3), colours=3)
    made["grey8.bmp"] = bmp(rows, 8, palette=b"".join(bytes([i, i, i, 0]) for i in range(40)), colours=40)
    made["os2.bmp"] = bmp(b"".join(aligned(r) for r in packed(samples(1, 1).reshape(HEIGHT, -1), 1)), 1, palette=table[:6], header=12)
    s = samples(32767, 1)
    sixteen = b"".join(aligned(r.astype("<u2").tobytes()) for r in s.reshape(HEIGHT, -1))
    made["rgb16_555.bmp"] = bmp(sixteen, 16)
    made["rgb16_565.bmp"] = bmp(sixteen, 16, 3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    made["rgb24.bmp"] = bmp(b"".join(aligned(bytes(r.reshape(-1).tolist())) for r in samples(255, 3)), 24)
    made["rgb24_top_down.bmp"] = bmp(b"".join(aligned(bytes(r.reshape(-1).tolist())) for r in samples(255, 3)), 24, down=True)
    four = b"".join(bytes(r.reshape(-1).tolist()) for r in samples(255, 4))
    made["rgb32.bmp"] = bmp(four, 32)
    made["rgb32_masks.bmp"] = bmp(four, 32, 3, masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF))
    made["rgba32_v4.bmp"] = bmp(four, 32, 3, masks=struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=108)
    made["rle8.bmp"] = bmp(bytes([3, 1, 0, 2, 2, 0, 5, 0, 0, 0, 5, 7, 0, 0, 5, 9, 0, 0, 0, 1]).replace(bytes([0, 2, 2, 0]), bytes([2, 4])), 8, 1, palette=quads(16), colours=16)
    made["rle4.bmp"] = bmp(bytes([5, 0x12, 0, 0, 5, 0x34, 0, 0, 5, 0x56, 0, 0, 0, 1]), 4, 2, palette=quads(16))

    made["whole.gif"] = gif((0, 0, 5, 3), (5, 3))
    made["clear.gif"] = gif((0, 0, 5, 3), (5, 3), transparent=3)
    made["part.gif"] = gif((1, 1, 3, 2), (5, 4), background=5)
    made["part_clear.gif"] = gif((1, 1, 3, 2), (5, 4), transparent=3, background=5)
    animation = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    made["animated.webp"] = saved("WEBP", animation[0], save_all=True, append_images=animation[1:], lossless=True)
    made["animated.png"] = saved("PNG", animation[0], save_all=True, append_images=animation[1:])
    soft = Image.fromarray(numpy.linspace(10, 240, 16 * 16 * 3).astype(numpy.uint8).reshape(16, 16, 3))
    made["lossy.webp"] = saved("WEBP", soft, quality=90)
    grey = soft.convert("L")
    made["grey.jpg"] = saved("JPEG", grey, quality=95)
    made["rgb_kept.jpg"] = saved("JPEG", soft, quality=95, keep_rgb=True)
    made["cmyk.jpg"] = saved("JPEG", soft.convert("CMYK"), quality=95)
    made["no_end.jpg"] = made["grey.jpg"][:-2]
    made["half.jpg"] = made["grey.jpg"][: len(made["grey.jpg"]) - 40]
    made["half_but_ended.jpg"] = made["half.jpg"] + b"\xff\xd9"
    return made


def tables(out):
    """The files of `kinds`, and what the reference makes of each."""
    from transformers.image_transforms import convert_to_rgb

    warnings.simplefilter("ignore")
    for name, body in kinds().items():
        out[f"{name}.file"] = torch.tensor(list(body), dtype=torch.uint8)
        try:
            with Image.open(io.BytesIO(body)) as image:
                image.load()
                dropped = torch.tensor(numpy.array(image.convert("RGB")))
                white = torch.tensor(convert_to_rgb(image, return_numpy=True))
        except (OSError, ValueError):
            continue
        out[f"{name}.dropped"] = dropped
        if not torch.equal(white, dropped):
            out[f"{name}.white"] = white


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, parts in {"reference": (resized, grids), "files": (files,), "kinds": (tables,)}.items():
        out = {}
        for part in parts:
            part(out)
        save_file({key: value.contiguous().clone() for key, value in out.items()}, FOLDER / f"{name}.safetensors")
