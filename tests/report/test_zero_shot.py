"""Measured zero-shot accuracies beside published ones."""

import pytest

from condu_ray.report.zero_shot import differing, verdict, zero_shot_lines

PUBLISHED = {"walls": 50.0, "doors": 60.0, "cars": 70.0}


def found(**measured):
    return {"source": "a paper", "published": PUBLISHED, "measured": PUBLISHED | measured}


@pytest.mark.parametrize(
    ("measured", "off", "words"),
    [
        ({}, [], ["as published (a paper)"]),
        ({"walls": 51.0, "cars": 69.0}, [], ["as published", "+1.0 points (walls)"]),
        ({"cars": 68.9}, ["cars"], ["not as published (a paper)", "cars is off", "most sets are right", "templates"]),
        ({"walls": 51.1, "cars": 60.0}, ["walls", "cars"], ["walls, cars are off", "most sets are off", "QuickGELU"]),
    ],
)
def test_a_set_is_off_by_more_than_a_point(measured, off, words):
    assert differing(found(**measured)) == off
    for word in words:
        assert word in verdict(found(**measured))
    if off:
        for cause in ("activation", "templates", "class names", "split", "transform"):
            assert cause in verdict(found(**measured))


def test_the_table_says_it_set_by_set():
    assert zero_shot_lines(found(cars=61.04)).splitlines() == [
        "Zero-shot  Published  Measured  Difference",
        "walls           50.0      50.0        +0.0",
        "doors           60.0      60.0        +0.0",
        "cars            70.0      61.0        -9.0  off",
        "mean            60.0      57.0        -3.0",
    ]
