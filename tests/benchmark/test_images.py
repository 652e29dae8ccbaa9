"""One table of pictures: the bytes, and what a person sees; and one of those that are refused, with the words."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from condu_ray.benchmark.images import MAX_RATIO, ImageError, decode, inspect_image
from condu_ray.vlm.preprocess import Preprocessor

COLOUR, OTHER, WHITE = (200, 100, 50), (20, 60, 220), (255, 255, 255)
RGB = Image.new("RGB", (16, 12), COLOUR)
CORNER = Image.new("RGB", (16, 12), WHITE)
CORNER.paste(OTHER, (0, 0, 8, 6))  # the upper left quarter is another colour
SHAPE = Image.new("L", (16, 12))
SHAPE.paste(255, (0, 0, 8, 12))  # opaque on the left
LEFT = Image.new("RGB", (16, 12), WHITE)
LEFT.paste(COLOUR, (0, 0, 8, 12))  # how the shape is seen
BLACK = Image.new("RGB", (16, 12), WHITE)
BLACK.paste((0, 0, 0), (0, 0, 8, 12))


def saved(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # Pillow leaves options in the image that it saved
    return buffer.getvalue()


def png(
    depth: int, colour: int, rows: list[bytes], width: int, transparent: bytes = b"", palette: bytes = b""
) -> bytes:
    """A PNG of any depth (bits a channel) and kind of colour, with a transparent colour in the file's own bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))]
    parts += [chunk(b"PLTE", palette)] if palette else []
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_alpha(image: Image.Image, alpha: Image.Image | int) -> Image.Image:
    result = image.copy()
    result.putalpha(alpha)
    return result


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(kind, CORNER, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


def upright(orientation: int) -> Image.Image:
    """CORNER as EXIF's table says: where the file's row 0 and column 0 are to be seen."""
    steps = {
        1: [],
        2: [ImageOps.mirror],
        3: [ImageOps.mirror, ImageOps.flip],
        4: [ImageOps.flip],
        5: [lambda image: image.rotate(90, expand=True), ImageOps.flip],
        6: [lambda image: image.rotate(-90, expand=True)],
        7: [lambda image: image.rotate(-90, expand=True), ImageOps.flip],
        8: [lambda image: image.rotate(90, expand=True)],
    }
    image = CORNER
    for step in steps[orientation]:
        image = step(image)
    return image


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (16, 12), colour)


PALETTE = RGB.copy()
PALETTE.paste(OTHER, (8, 0, 16, 12))
PALETTE = PALETTE.quantize()
GREYS = Image.new("RGB", (2, 1))
GREYS.putdata([(85, 85, 85), WHITE])
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
DEEP = b"".join(struct.pack(">HHH", 200 << 8 | 7, 100 << 8 | 9, 50 << 8) for _ in range(16))

#: The bytes, what is seen, and whether the ground shows through.
SEEN: dict[str, tuple[bytes, Image.Image, bool]] = {
    "RGB": (saved("PNG", RGB), RGB, False),
    "RGBA": (saved("PNG", with_alpha(RGB, SHAPE)), LEFT, True),
    "RGBA, a black shape": (saved("PNG", with_alpha(plain((0, 0, 0)), SHAPE)), BLACK, True),
    "RGBA, opaque": (saved("PNG", with_alpha(RGB, 255)), RGB, False),
    "RGBA, half": (saved("PNG", with_alpha(RGB, 128)), plain((227, 177, 152)), True),
    "RGBA in WebP": (saved("WEBP", with_alpha(RGB, SHAPE), lossless=True), LEFT, True),
    "RGBA in TIFF": (saved("TIFF", with_alpha(RGB, SHAPE)), LEFT, True),
    "LA, a black shape": (saved("PNG", with_alpha(Image.new("L", (16, 12)), SHAPE)), BLACK, True),
    "LA, opaque": (saved("PNG", with_alpha(Image.new("L", (16, 12), 85), 255)), plain((85, 85, 85)), False),
    "grey": (saved("PNG", Image.new("L", (16, 12), 85)), plain((85, 85, 85)), False),
    "black and white": (saved("PNG", Image.new("1", (16, 12), 1)), plain(WHITE), False),
    "palette": (saved("PNG", PALETTE), PALETTE.convert("RGB"), False),
    "palette, one entry transparent": (
        png(8, 3, [b"\0" * 8 + b"\1" * 8] * 12, 16, b"\xff\0", bytes((*COLOUR, 0, 0, 0))), LEFT, True,
    ),
    "palette, an entry half transparent": (
        png(8, 3, [b"\0" * 16] * 12, 16, b"\x80", bytes(COLOUR)), plain((227, 177, 152)), True,
    ),
    "palette, a transparent entry that no pixel has": (
        png(8, 3, [b"\0" * 16] * 12, 16, b"\xff\0", bytes((*COLOUR, 0, 0, 0))), RGB, False,
    ),
    "GIF": (saved("GIF", PALETTE), PALETTE.convert("RGB"), False),
    "GIF, transparent": (saved("GIF", with_alpha(RGB, SHAPE)), LEFT, True),
    "RGB with a transparent colour": (saved("PNG", BLACK, transparency=(0, 0, 0)), plain(WHITE), True),
    "grey with a transparent colour": (png(8, 0, [b"\x55\xff"], 2, b"\0\x55"), Image.new("RGB", (2, 1), WHITE), True),
    "2 bits with a transparent colour": (png(2, 0, [b"\x70"], 2, b"\0\1"), Image.new("RGB", (2, 1), WHITE), True),
    "2 bits, the other colour": (png(2, 0, [b"\x70"], 2, b"\0\2"), GREYS, False),
    "1 bit with a transparent colour": (png(1, 0, [b"\x40"], 2, b"\0\0"), Image.new("RGB", (2, 1), WHITE), True),
    **{f"JPEG, orientation {turn}": (turned("JPEG", turn), upright(turn), False) for turn in range(1, 9)},
    **{f"{kind}, orientation 6": (turned(kind, 6), upright(6), False) for kind in ("PNG", "TIFF")},
    "WebP, orientation 8": (
        saved("WEBP", CORNER, lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x08\0\0\0\0\0\0"),
        upright(8), False,
    ),
    "orientation in XMP": (saved("JPEG", CORNER, xmp=XMP, quality=100, subsampling=0), upright(6), False),
    "orientation 9, which is none": (turned("JPEG", 9), CORNER, False),
    "EXIF that cannot be read": (saved("JPEG", RGB, exif=b"Exif\0\0XX nonsense"), RGB, False),
    "EXIF that is cut": (saved("JPEG", RGB, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12"), RGB, False),
    "transparent and turned": (
        saved("PNG", with_alpha(RGB, SHAPE), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0"),
        ImageOps.mirror(LEFT), True,
    ),
    "CMYK in JPEG": (saved("JPEG", RGB.convert("CMYK"), quality=100), RGB, False),
    "YCbCr in TIFF": (saved("TIFF", RGB.convert("YCbCr")), RGB, False),
    "CMYK in TIFF": (saved("TIFF", RGB.convert("CMYK")), RGB, False),
    "several pictures in a JPEG": (
        saved("MPO", RGB, save_all=True, append_images=[plain(OTHER)], quality=100), RGB, False,
    ),
    "16 bits a channel": (png(16, 2, [DEEP] * 12, 16), RGB, False),
    "16 bits a channel with alpha": (
        png(16, 6, [(DEEP[:6] + b"\xff\xff") * 8 + (DEEP[:6] + b"\0\0") * 8] * 12, 16), LEFT, True,
    ),
    "16 bits of grey with alpha": (png(16, 4, [b"\0\0\xff\xff" * 8 + b"\0\0\0\0" * 8] * 12, 16), BLACK, True),
    **{
        f"animated {kind}": (
            saved(kind, PALETTE.convert("RGB"), save_all=True, append_images=[RGB], **options),
            PALETTE.convert("RGB"), False,
        )
        for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}))
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN)
def test_a_picture_is_what_a_person_sees(case: str) -> None:
    encoded, expected, transparent = SEEN[case]
    found = decode(encoded)
    assert (found.mode, found.size) == ("RGB", expected.size)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 4  # what JPEG loses
    seen = inspect_image(encoded)
    assert (seen.wrong, seen.transparent, seen.animated) == (None, transparent, case.startswith("animated"))


@pytest.mark.parametrize("augment", [False, True])
def test_training_and_evaluation_see_the_same_picture(augment: bool) -> None:
    preprocessor = Preprocessor({"size": 8}, augment)
    for case in ("RGBA, a black shape", "JPEG, orientation 6"):
        encoded, expected, _ = SEEN[case]
        found = preprocessor.pixels(encoded, seed=3)
        assert np.abs(found.astype(int) - preprocessor.pixels(saved("PNG", expected), seed=3)).max() <= 4


def strip(width: int, height: int) -> bytes:
    return saved("PNG", Image.new("L", (width, height)))


#: Pictures that are refused, by every reader alike, and the words.
REFUSED: dict[str, tuple[bytes, str]] = {
    "16 bits of grey": (saved("PNG", Image.new("I;16", (8, 8), 40_000)), r"more than 8 bits a channel \(mode 'I;16'\)"),
    "16 bits of grey in TIFF": (saved("TIFF", Image.new("I;16", (8, 8), 40_000)), "more than 8 bits a channel"),
    "32 bits of grey": (saved("TIFF", Image.new("I", (8, 8), 70_000)), r"more than 8 bits a channel \(mode 'I'\)"),
    "real numbers": (saved("TIFF", Image.new("F", (8, 8), 0.5)), r"more than 8 bits a channel \(mode 'F'\)"),
    "16 bits and a transparent colour": (png(16, 2, [DEEP], 16, DEEP[:6]), "transparent colour of 16 bits a channel"),
    "tall": (strip(1, 60_000), "1 x 60000 pixels, one side more than 200 times the other; crop it"),
    "wide": (strip(60_000, 2), "60000 x 2 pixels, one side more than 200 times the other"),
    "just too long": (strip(10, 10 * MAX_RATIO + 1), "one side more than 200 times the other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_picture_without_a_right_reading_is_refused_everywhere(case: str) -> None:
    encoded, words = REFUSED[case]
    for augment in (False, True):
        with pytest.raises(ImageError, match=words):
            Preprocessor({"size": 8}, augment).pixels(encoded)
    with pytest.raises(ImageError, match=words):
        decode(encoded)
    assert words.split(r"\(")[0].strip() in str(inspect_image(encoded).wrong)


@pytest.mark.parametrize("size", [(1, MAX_RATIO), (MAX_RATIO, 1), (20, 20 * MAX_RATIO)])
@pytest.mark.parametrize("augment", [False, True])
def test_what_is_scaled_has_a_bound(size: tuple[int, int], augment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *args, **more: made.append(original(*args, **more)) or made[-1])
    assert Preprocessor({"size": 224}, augment).pixels(strip(*size)).shape == (224, 224, 3)
    assert 0 < max(image.width * image.height for image in made) <= MAX_RATIO * 224**2
