"""What happens to a picture behind and after its subject: backdrop, clutter, soft focus, light and noise."""

import numpy as np
from PIL import Image, ImageFilter

from condu_ray.benchmark.mini_mtil import colours
from condu_ray.benchmark.mini_mtil.pen import SCALE, SIDE, Pen


def backdrop(pen: Pen) -> None:
    """Lays an uneven background with strokes that belong to nothing."""
    style = pen.style
    if style.patchy:
        cells = np.array(pen.paper) + pen.rng.normal(0.0, style.patchy, (4, 4, 3))
        small = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
        pen.image.paste(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    for _ in range(pen.whole(0, style.clutter)):
        # clutter is near the paper in colour, so that the subject still stands out
        _stroke(pen, colours.jitter(pen.rng, pen.paper, 35.0))


def cover(pen: Pen) -> None:
    """Sometimes hides a part of the subject behind a stroke."""
    if pen.chance(pen.style.cover):
        _stroke(pen, colours.jitter(pen.rng, pen.paper, 35.0), (2, 7))


def finish(pen: Pen) -> Image.Image:
    """Averages the picture down to its size and wears it: focus, light and noise."""
    style, image = pen.style, pen.image.reduce(SCALE)
    if style.blur and pen.chance(style.blur):
        image = image.filter(ImageFilter.BoxBlur(pen.uniform(0.3, 1.0)))
    if not style.noise and not style.light:
        return image
    pixels = np.asarray(image, dtype=np.float32)
    gain, lift = pen.uniform(1 - style.light, 1 + 0.5 * style.light), 128 * pen.uniform(-style.light, style.light)
    pixels = (pixels - 128) * gain + 128 + lift
    grain = pen.rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels += grain * pen.uniform(0.1 * style.noise, style.noise)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _stroke(pen: Pen, colour: colours.Colour, width: tuple[int, int] = (2, 14)) -> None:
    ends = pen.rng.uniform(0, SIDE, 4).tolist()
    if pen.chance(0.6):
        pen.draw.line(ends, fill=colour, width=pen.whole(*width))
    else:
        x, y, radius = ends[0], ends[1], pen.uniform(2, 2 * width[1])
        pen.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
