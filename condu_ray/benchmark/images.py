"""What an image's bytes must be to be trained or evaluated on."""

from __future__ import annotations

import hashlib
import io
import os

from PIL import Image, UnidentifiedImageError

#: Largest image that is decoded, in pixels: one of 64 megapixels takes about 200 MB.
MAX_PIXELS = 64_000_000


def inspect_image(data: bytes | None) -> tuple[bytes, str | None, bool]:
    """Returns an image's hash (16 bytes), what is wrong with it, if anything, and whether it has several frames."""
    if not data:
        # A random hash: two missing images are not the same image.
        return os.urandom(16), "is null" if data is None else "has no bytes", False
    digest, wrong, frames = hashlib.sha256(data).digest()[:16], None, False
    most = f"more than {MAX_PIXELS // 1_000_000} megapixels"
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                wrong = f"has {image.width} x {image.height} pixels, {most}; scale it down"
            else:
                image.load()
                # MPO is a JPEG with a preview or a depth map behind it, not an animation.
                frames = getattr(image, "is_animated", False) and image.format != "MPO"
                if image.mode.startswith(("I", "F")):  # convert("RGB") would make all values above 255 white
                    wrong = f"has more than 8 bits a channel (mode {image.mode!r}); scale its values to 0 to 255"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        wrong = f"has {most} ({error}); scale it down"
    except UnidentifiedImageError:  # its text holds the buffer's address, which differs from run to run
        wrong = "not an image in a known format"
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        wrong = f"does not decode ({error})"
    return digest, wrong, frames
