"""How a world of drawings looks: the one of the pretraining icons, and one for every task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """The spread of pose, background and damage of one world of drawings.

    Attributes:
        clean: The pretraining world: plain paper, flat ink, printed digits.
        turn: Largest rotation either way, in degrees.
        zoom: Smallest and largest size of the subject, 1 being the whole picture.
        shift: Largest displacement of the subject, in half pictures.
        shear: Largest shear.
        warp: Amplitude of a smooth warp, as of an unsteady hand.
        tint: Standard deviation of the colours, in levels of 255.
        clutter: Most distracting strokes drawn behind the subject.
        cover: Probability of a stroke drawn over the subject.
        patchy: Spread of the background's colour within one picture, in levels of 255.
        noise: Largest standard deviation of the pixel noise, in levels of 255.
        light: Spread of contrast and brightness, as a share.
        blur: Probability of a soft focus.
    """

    clean: bool = False
    turn: float = 15.0
    zoom: tuple[float, float] = (0.6, 1.0)
    shift: float = 0.15
    shear: float = 0.15
    warp: float = 0.04
    tint: float = 20.0
    clutter: int = 4
    cover: float = 0.2
    patchy: float = 25.0
    noise: float = 20.0
    light: float = 0.25
    blur: float = 0.25


CLEAN = Style(
    clean=True,
    turn=8.0,
    zoom=(0.75, 1.0),
    shift=0.08,
    shear=0.0,
    warp=0.0,
    tint=8.0,
    clutter=0,
    cover=0.0,
    patchy=0.0,
    noise=0.0,
    light=0.0,
    blur=0.0,
)
