import json
import os
import pickle
import pwd
from pathlib import Path, PurePath

import pytest

from condu_ray.command_line import ConfigError, parse
from condu_ray.config import Experiment, Sweep
from condu_ray.store.location import Location, LocationError


@pytest.mark.parametrize("text", ["a/b", "/a/b/", "./a", "a//b", ".", "..", "a:b/c", "~/x", "s3:/b", ""])
def test_a_folder_is_what_a_path_makes_of_it(text):
    place = Location(text)
    assert place == Location(Path(text)) == Location(place)
    assert (str(place), os.fspath(place), place.name) == (str(Path(text)), str(Path(text)), Path(text).name)
    assert str(place / "x") == str(Path(text) / "x")
    assert str(place.parent) == str(Path(text).parent)
    assert str(place.absolute()) == str(Path(text).absolute())


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://bucket/x", "bucket", "x"), ("gs://b", "b", ""), ("az://c/x//y/", "c", "x/y"), ("S3://b/./x", "b", "x"),
        ("s3://b.c-d_e/~/a b", "b.c-d_e", "~/a b"),
    ],
)  # fmt: skip
def test_a_bucket_is_named_by_its_scheme(text, bucket, key):
    place = Location(text)
    assert (place.scheme, place.bucket, place.key) == (text[:2].lower(), bucket, key)
    assert str(place) == f"{text[:2].lower()}://{bucket}/{key}".rstrip("/")
    assert place == Location(str(place)) == Location(place) == place.absolute() == (place / "z").parent
    assert (place / "y" / "z").name == "z"
    assert (place / "y/z").key == f"{key}/y/z".lstrip("/")
    assert pickle.loads(pickle.dumps(place)) == place
    assert json.loads(Experiment(storage=text, run="r").model_dump_json())["storage"] == str(place)
    with pytest.raises(TypeError, match="in a bucket"):
        os.fspath(place)


def test_the_parent_of_a_bucket_is_the_bucket():
    place = Location("s3://b/x")
    assert place.parent == place.parent.parent == Location("s3://b")
    assert sorted([Location("s3://b/x"), Location("a"), Location("s3://b/a/c")])[-1] == place


@pytest.mark.parametrize(
    "text", ["s3://", "s3:///x", "s3://user:hush@bucket/x", "gs://bucket/x?token=hush", "az://:/x"]
)
def test_a_bucket_that_is_none_is_refused_without_what_may_be_a_password(text):
    with pytest.raises(
        LocationError, match=r"write \w\w://BUCKET/PATH, with credentials .* in the environment"
    ) as caught:
        Location(text)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("above", [".", "..", "/", "//", "a", "a/", "a.", "/a/b", "a/..", ".a", "a//b", "/.", "é"])
def test_it_is_joined_as_a_path_is(above):
    for name in ("x", "x.y", "-x", "_x.", "..", ".", "", "a/b", "a/", "/a", ".h", "é", "a b", "x\n", PurePath("q/r")):
        assert str(Location(above) / name) == str(PurePath(above) / name), name


def test_a_bucket_has_no_way_up():
    for make in (lambda: Location("s3://b/a/../x"), lambda: Location("s3://b") / "../x"):
        with pytest.raises(LocationError, match=r"without '\.\.'"):
            make()


@pytest.mark.parametrize("text", ["hdfs://b/x", "file:///tmp/x", "HTTPS://user:word@host/x", "a+b.c-1://", "s3a://b"])
def test_a_scheme_without_a_backend_is_refused_by_name(text):
    with pytest.raises(LocationError, match="give a folder") as caught:
        Location(text)
    assert text.partition("://")[0] + "://" in str(caught.value)
    assert "word" not in str(caught.value)


HOME = "/somebody"
ROOT = pwd.getpwnam("root").pw_dir
HOMES = {
    "~": HOME, "~/x": f"{HOME}/x", "~root/x": f"{ROOT}/x", "a/~": "a/~", "./~": "~", "~a~": None,
    "~nobody-here": None,
}  # fmt: skip


@pytest.mark.parametrize("text", HOMES)
def test_a_home_folder_is_meant_wherever_a_person_names_a_place(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.chdir(tmp_path)
    for flag in ("storage", "data", "distillation.captions", "distillation.reference", "model", "pretrained", "orders"):
        if HOMES[text] is None:
            with pytest.raises(ConfigError, match=rf"{flag}.*no user's home; for a folder of that name write \./~"):
                parse([f"--{flag}", text], Sweep)
            continue
        found = parse([f"--{flag}", text], Sweep)
        for part in flag.split("."):
            found = getattr(found, part)
        wanted = text if flag in ("model", "pretrained", "orders") and text[0] != "~" else HOMES[text]
        assert str(found[0] if flag == "distillation.reference" else found) == wanted
    words = "no user's home" if HOMES[text] is None else "no such file|directory"
    with pytest.raises(ConfigError, match=words):
        parse(["--config", f"{text}/config.yaml"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [3, None, True, ["a"], b"a"])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(LocationError, match="is no path"):
        Location(value)


@pytest.mark.parametrize("field", ["storage", "data", "distillation.reference", "distillation.captions"])
def test_every_setting_that_names_a_place_refuses_a_scheme_before_anything_is_made(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{field}.*ftp://.*give a folder"):
        parse([f"--{field}", "ftp://host/deep"])
    assert list(tmp_path.iterdir()) == []


def test_settings_take_a_text_a_path_or_a_location_and_give_json_as_a_text(tmp_path):
    made = [Experiment(storage=kind(tmp_path), data=kind("a/b")) for kind in (str, Path, Location)]
    assert made[0] == made[1] == made[2]
    dumped = made[0].model_dump(mode="json")
    assert (dumped["storage"], dumped["data"]) == (str(tmp_path), "a/b")
    assert json.loads(made[0].model_dump_json()) == dumped
    assert Experiment.model_validate(dumped) == Experiment.model_validate(made[0].model_dump()) == made[0]


def test_it_travels_and_can_be_a_key_and_sorted():
    places = [Location(name) for name in ("b", "a/b", "a")]
    assert pickle.loads(pickle.dumps(places)) == places
    assert {Location("a"): 1}[Location("./a")] == 1
    assert [str(place) for place in sorted(places)] == ["a", "a/b", "b"]
