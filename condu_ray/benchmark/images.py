"""What an image's bytes must be to be trained or evaluated on, and how they become a picture."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from contextlib import suppress
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

#: Part of every fingerprint of data: raise it when the same bytes give another picture.
DECODING = 2
#: Largest image that is decoded, in pixels: one of 64 megapixels takes about 200 MB.
MAX_PIXELS = 64_000_000
#: Longest side by shortest side, at most: scaled by its short side to 512, such a picture has 52 megapixels.
MAX_RATIO = 200

# Pillow's remarks on EXIF, which no one can act on; for all threads, as filters are.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_MOST = f"more than {MAX_PIXELS // 1_000_000} megapixels"
_GROUND = (255, 255, 255)  # what shows through where a picture is transparent


class ImageError(ValueError):
    """An image that is not decoded; the message says what it is, and what to do."""


class Seen(NamedTuple):
    """What `inspect_image` saw."""

    digest: bytes  #: the hash of the image's bytes, 16 bytes
    wrong: str | None  #: why the image cannot be used; None if it can
    animated: bool  #: whether it has several frames
    transparent: bool  #: whether the ground shows through it somewhere


def decode(data: bytes) -> Image.Image:
    """Decodes a picture as a person sees it: the first frame, upright (EXIF orientation), on white where transparent.

    Returns:
        An image of mode RGB, 8 bits a channel.

    Raises:
        ImageError: it has more than `MAX_PIXELS` pixels, sides beyond `MAX_RATIO`, or more than 8 bits a channel of
            which no 8 can be chosen.
        OSError: it does not decode; Pillow's decoders raise some other errors too.
    """
    return _decode(data)[0]


def picture_digest(data: bytes | None) -> bytes:
    """Returns a hash of 16 bytes that equal pictures have, however they are encoded; of the bytes, if none decodes."""
    try:
        picture = decode(data or b"")
        return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()[:16]
    except Exception:  # what does not decode is refused by the check; here it is a picture of its own
        return hashlib.sha256(data or b"").digest()[:16]


def inspect_image(data: bytes | None) -> Seen:
    """Decodes an image as training will, and says what is to be known of it."""
    return inspect(data)[0]


def inspect(data: bytes | None) -> tuple[Seen, Image.Image | None]:
    """Returns what `inspect_image` says of an image, and its picture where it can be used."""
    if not data:
        # A random hash: two missing images are not the same image.
        return Seen(os.urandom(16), "is null" if data is None else "has no bytes", False, False), None
    digest, wrong, animated, transparent = hashlib.sha256(data).digest()[:16], None, False, False
    picture: Image.Image | None = None
    try:
        picture, animated, transparent = _decode(data)
    except ImageError as error:
        wrong = str(error)
    except UnidentifiedImageError:  # its text holds the buffer's address, which differs from run to run
        wrong = "not an image in a known format"
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        wrong = f"does not decode ({error})"
    return Seen(digest, wrong, animated, transparent), picture


def as_seen(image: Image.Image) -> Image.Image:
    """Returns a picture that somebody has opened as `decode` would: upright, RGB, on white where transparent.

    Raises:
        ImageError, OSError: as `decode`.
    """
    return _picture(image.copy(), _depth(image))[0]  # a copy forgets the file's own depth


def _decode(data: bytes) -> tuple[Image.Image, bool, bool]:
    """Returns the picture, whether it has several frames, and whether the ground shows through it."""
    try:
        opened = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"has {_MOST} ({error}); scale it down") from error
    with opened as image:
        return _picture(image, _depth(image))


def _picture(image: Image.Image, depth: int) -> tuple[Image.Image, bool, bool]:
    """As `_decode`, of an image that is open, which is changed."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"has {size}, {_MOST}; scale it down")
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ImageError(f"has {size}, one side more than {MAX_RATIO} times the other; crop it")
    image.load()
    with suppress(Exception):  # EXIF that cannot be read says nothing; Pillow raises errors of many kinds for it
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # convert("RGB") would make all values above 255 white
        raise ImageError(f"has more than 8 bits a channel (mode {image.mode!r}); scale its values to 0 to 255")
    # MPO is a JPEG with a preview or a depth map behind it, not an animation.
    animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    picture, transparent = _on_ground(image, depth)
    return picture, animated, transparent


def _depth(image: Image.Image) -> int:
    """Returns the bits a channel of an image that is not loaded yet, as far as its decoder says."""
    tiles = getattr(image, "tile", None)
    mode = tiles[0].args if tiles and isinstance(tiles[0].args, str) else ""  # such as "RGB;16B"
    bits = mode.partition(";")[2].rstrip("BLNSR")
    return int(bits) if bits.isdigit() else 8


def _on_ground(image: Image.Image, depth: int) -> tuple[Image.Image, bool]:
    """Returns an image in RGB, composed on white if it has transparent places, and whether it has."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    colour = image.info.get("transparency")
    if image.mode in ("L", "RGB") and colour is not None and depth != 8:  # the colour is given in the file's own bits
        if depth > 8:
            raise ImageError(f"has a transparent colour of {depth} bits a channel; write it with 8, or with alpha")
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    layers = image.convert("RGBA")
    alpha = layers.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return layers.convert("RGB"), False
    ground = Image.new("RGB", image.size, _GROUND)
    ground.paste(layers.convert("RGB"), mask=alpha)
    return ground, True
