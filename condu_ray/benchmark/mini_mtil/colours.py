"""Named colours: what a drawing is inked with and what its caption calls it."""

import numpy as np

Colour = tuple[int, int, int]

NAMED: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (243, 134, 40),
    "yellow": (247, 208, 56),
    "green": (56, 152, 72),
    "blue": (44, 92, 200),
    "purple": (128, 60, 168),
    "pink": (240, 130, 180),
    "brown": (126, 82, 48),
    "black": (28, 28, 30),
    "white": (248, 248, 248),
    "gray": (134, 138, 142),
    "turquoise": (48, 184, 180),
}
NAMES = tuple(NAMED)


def jitter(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """Returns `colour` with each channel moved by about `amount` levels."""
    red, green, blue = (np.array(colour) + rng.normal(0.0, amount, 3)).clip(0, 255).astype(int).tolist()
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """Returns `colour` darkened (factor below 1) or lightened (factor above 1, towards white at 2)."""
    if factor <= 1:
        red, green, blue = (int(channel * factor) for channel in colour)
    else:
        red, green, blue = (int(channel + (255 - channel) * (factor - 1)) for channel in colour)
    return red, green, blue


def distance(one: Colour, other: Colour) -> int:
    """Returns the L1 distance of two colours."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def contrasting(rng: np.random.Generator, colour: Colour, least: int = 200) -> str:
    """Returns the name of a random colour that stands out against `colour`."""
    far = [name for name, value in NAMED.items() if distance(value, colour) >= least]
    return far[int(rng.integers(len(far)))]
