"""Two-coloured patterns that fill the picture, seen at many angles and scale."""

import math
from collections.abc import Callable

import numpy as np

from condu_ray.benchmark.mini_mtil.colours import NAMED, distance
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen
from condu_ray.benchmark.mini_mtil.style import Style

_PIXELS = 96
_GRID = np.stack(np.meshgrid(np.linspace(-1, 1, _PIXELS), np.linspace(-1, 1, _PIXELS)), axis=-1)
Field = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _stripes(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    return v % 1 < share


def _checkerboard(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    return (np.floor(u * 1.2) + np.floor(v * 1.2)) % 2 < 1


def _dots(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < (0.62 * share) ** 2


def _waves(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    return (v + 0.5 * np.sin(2 * math.pi * u * 0.38)) % 1 < share


def _zigzag(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    return (v + 1.3 * np.abs(u * 0.9 % 1 - 0.5)) % 1 < share


def _bricks(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    row = np.floor(v)
    seam = 0.32 * share
    return (v % 1 > seam) & ((u * 0.5 + 0.5 * (row % 2)) % 1 > 0.5 * seam)


def _grid(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    return (u % 1 < 0.35 * share) | (v % 1 < 0.35 * share)


def _honeycomb(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    # the two nearest centres of a hexagonal lattice are equally far along a cell's edge
    step = math.sqrt(3)
    near = []
    for shift in (0.0, 0.5):
        du = (u - shift) - np.round(u - shift)
        dv = ((v / step - shift) - np.round(v / step - shift)) * step
        near.append((du, dv))
    (au, av), (bu, bv) = near
    inside = au**2 + av**2 < bu**2 + bv**2
    du, dv = np.abs(np.where(inside, au, bu)), np.abs(np.where(inside, av, bv))
    return np.maximum(du, 0.5 * du + 0.5 * step * dv) > 0.5 - 0.22 * share


def _scales(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    out = np.zeros(u.shape, dtype=bool)
    # rows of discs, each laid over the row below: only their lower edges stay in sight
    for lift in (2, 1, 0, -1):
        row = np.floor(v * 2) + lift
        radius = np.hypot((u - 0.5 * (row % 2)) % 1 - 0.5, v - 0.5 * row)
        out = np.where(radius < 0.6, radius > 0.6 - 0.28 * share, out)
    return out


def _spots(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    # blotches of no regular order, from a few waves of mixed directions
    total = np.zeros(u.shape)
    for step in range(7):
        angle = 2.4 * step + 3 * share
        total += np.sin(2 * math.pi * 0.75 * (u * math.cos(angle) + v * math.sin(angle)) + 5.1 * step * share)
    return total > 0.9


def _texture(field: Field) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        clean = pen.style.clean
        angle = math.radians(pen.uniform(-pen.style.turn, pen.style.turn))
        count = pen.uniform(2.0, 2.8) if clean else pen.uniform(1.6, 2.9)
        cos, sin = count * math.cos(angle), count * math.sin(angle)
        uv = _GRID
        if pen.style.warp:
            uv = uv + pen.style.warp * np.sin(3 * uv[..., ::-1] + pen.rng.uniform(0, 6, 2))
        uv = uv @ np.array([[cos, sin], [-sin, cos]]) + pen.rng.uniform(0, 8, 2)
        mask = field(uv[..., 0], uv[..., 1], pen.uniform(0.45, 0.55) if clean else pen.uniform(0.3, 0.65))
        ground = np.asarray(pen.paper, dtype=float)
        ink = np.asarray(pen.ink if distance(pen.ink, pen.paper) > 90 else NAMED["black"], dtype=float)
        pixels = np.where(mask[..., None], ink, ground)
        if not clean:
            # worn and unevenly lit cloth
            light = pen.rng.normal(0, pen.style.patchy, (1, 1, 3)) + _GRID @ pen.rng.normal(0, 30, (2, 1))
            pixels = pixels + light + pen.rng.normal(0, 8, (_PIXELS, _PIXELS, 1))
        pen.lay(pixels.clip(0, 255).astype(np.uint8))

    return draw


DOMAIN = Domain(
    name="textures",
    about="patterns of worn cloth, paper and tiles that fill the picture",
    template="a close-up of a {} pattern.",
    classes={
        "striped": _texture(_stripes),
        "checkerboard": _texture(_checkerboard),
        "polka dot": _texture(_dots),
        "wavy": _texture(_waves),
        "zigzag": _texture(_zigzag),
        "brick": _texture(_bricks),
        "grid": _texture(_grid),
        "honeycomb": _texture(_honeycomb),
        "fish scale": _texture(_scales),
        "spotted": _texture(_spots),
    },
    style=Style(turn=45, warp=0.04, cover=0.2, patchy=10, noise=18, light=0.3, blur=0.25),
    phrases=("a {} pattern", "a {} texture", "a {} pattern"),
)
