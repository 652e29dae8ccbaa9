"""The pretraining drawings: clean icons with captions, in no task's style and from no task's seeds."""

import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from condu_ray.benchmark.mini_mtil.catalogue import DOMAINS
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.extras import EXTRAS
from condu_ray.benchmark.mini_mtil.pen import Pen

# what a picture book, not a task, would write under its pictures
_FRAMES = (
    "{}",
    "{}.",
    "an icon of {}",
    "a picture of {}",
    "a drawing of {}.",
    "an illustration of {}.",
    "clip art of {}",
    "this is {}.",
    "a simple picture of {}",
    "a small image of {}.",
    "here you see {}",
    "a sticker of {}",
)
_ARTICLE = re.compile(r"\ba (?=[aeiou])")
_EXTRA_SHARE = 0.2
_ICON_STREAM = 7


def caption(domain: Domain, name: str, pen: Pen) -> str:
    """Returns one of the many captions that fit an icon."""
    noun = name
    if domain.inked and pen.chance(0.5):
        noun = f"{pen.ink_name} {name}"
    phrase = pen.pick(domain.phrases).format(noun)
    if domain.framed and pen.chance(0.3):
        ground = pen.pick(("on a {} background", "on {}", "in front of {}"))
        phrase = f"{phrase} {ground.format(pen.paper_name)}"
    words = pen.pick(_FRAMES).format(phrase)
    return _ARTICLE.sub("an ", words)


def icons(count: int, seed: int) -> Iterator[tuple[Image.Image, str]]:
    """Yields `count` clean icons with captions: other drawings than the tasks', in another style.

    Args:
        count: How many pairs.
        seed: Seed of the drawings; no task shares its stream of random numbers, whatever its seed.
    """
    tasks = list(DOMAINS.values())
    for number in range(count):
        rng = np.random.default_rng([_ICON_STREAM, seed, number])
        among = EXTRAS if rng.random() < _EXTRA_SHARE else tasks
        domain = among[int(rng.integers(len(among)))]
        name = domain.names[int(rng.integers(len(domain.names)))]
        image, pen = domain.icon(name, rng)
        yield image, caption(domain, name, pen)
