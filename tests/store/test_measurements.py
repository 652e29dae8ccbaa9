"""Measurements in storage: what was written is read, and nothing else."""

import json
from dataclasses import asdict, replace

import pytest

from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.measurements import Accuracy, measurement_path, read_measurement, write_measurement

FOUND = Accuracy(3, 4, 0.5, relative_l2=0.25)


def test_what_was_measured_is_found_again(tmp_path):
    assert read_measurement(tmp_path, "key") is None
    write_measurement(tmp_path, "key", FOUND)
    assert read_measurement(tmp_path, "key") == FOUND
    write_measurement(tmp_path, "key", replace(FOUND, run="a run"))
    assert read_measurement(tmp_path, "key").run == "a run"


def test_measurements_of_before_there_were_seals_are_read(tmp_path):
    path = measurement_path(tmp_path, "key")
    path.parent.mkdir()
    path.write_text(json.dumps(asdict(FOUND)))
    assert read_measurement(tmp_path, "key") == FOUND


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text(path.read_text().replace('"correct": 3', '"correct": 4')), "checksum"),
        (lambda path: path.write_text(path.read_text()[:-9]), "cannot be read as JSON"),
        (lambda path: path.write_text("{}"), "is no measurement"),
        (lambda path: path.write_text('{"correct": 5, "images": 4}'), "5 of 4 images"),
        (lambda path: path.write_text('{"correct": 0, "images": 0}'), "0 of 0 images"),
        (lambda path: path.write_text('{"correct": 1, "images": 4.0}'), "1 of 4.0 images"),
        (lambda path: path.write_text('{"correct": 1, "images": 4, "rescaler": "2"}'), "rescaler is '2'"),
        (lambda path: path.write_text('{"correct": 1, "images": 4, "rescaler": Infinity}'), "rescaler is inf"),
        (lambda path: path.write_bytes(measurement_path(path.parents[1], "other").read_bytes()), "belongs to '.*other"),
    ],
    ids=["changed", "cut", "empty", "impossible", "none", "half", "text", "infinite", "another's"],
)
def test_what_is_wrong_is_named_and_not_used(tmp_path, change, words):
    for key in ("key", "other"):
        write_measurement(tmp_path, key, FOUND)
    path = measurement_path(tmp_path, "key")
    change(path)
    with pytest.raises(ArtifactError, match=words) as caught:
        read_measurement(tmp_path, "key")
    assert str(path) in str(caught.value)
