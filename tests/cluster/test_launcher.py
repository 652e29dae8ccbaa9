"""`cluster/ray-cluster.yaml` against Ray's own schema, defaults and command line."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from places import ROOT

from condu_ray import __version__
from condu_ray.orchestration.cluster import env


@pytest.fixture(scope="module")
def launcher():
    return yaml.safe_load((ROOT / "cluster" / "ray-cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(launcher):
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy(launcher))


def check(config):
    """Ray's schema, then what `ray up` checks once its defaults are filled in."""
    from ray import autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(copy.deepcopy(config)))


def test_it_satisfies_rays_schema(launcher):
    check(launcher)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("max_worker",), 8, "max_worker"),
        (("max_workers",), "eight", "eight"),
        (("provider",), {"region": "us-west-2"}, "type"),
        (("docker", "images"), "x", "images"),
        (("head_node_type",), "heads", "head_node_type"),
        (("available_node_types", "gpu", "max_worker"), 1, "max_worker"),
        (("available_node_types", "gpu", "min_workers"), 9, "min_workers"),
        (("setup_commands",), "ls", "array"),
    ],
)
def test_a_broken_one_does_not(launcher, path, value, words):
    broken = copy.deepcopy(launcher)
    place = broken
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises((ValueError, jsonschema.ValidationError), match=words):
        check(broken)


def test_rays_defaults_install_nothing_over_the_image(prepared):
    assert [prepared[name] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")] == [
        [],
        [],
        [],
    ]


def test_workers_come_when_they_are_asked_for_and_the_head_takes_no_work(launcher):
    nodes = launcher["available_node_types"]
    assert nodes[launcher["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: node for name, node in nodes.items() if name != launcher["head_node_type"]}
    assert {node["min_workers"] for node in workers.values()} == {0}
    assert sum(node["max_workers"] for node in workers.values()) == launcher["max_workers"]


def test_ray_and_mlflow_know_every_flag(launcher):
    from mlflow.cli import server
    from ray.scripts.scripts import start

    seen = set()
    for command in [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]:
        for program, options in (("ray start", start.params), ("mlflow server", server.params)):
            if program in command:
                seen.add(program)
                known = {name for option in options for name in option.opts}
                words = [word.split("=")[0] for word in shlex.split(command) if word.startswith("--")]
                assert words
                assert set(words) <= known
    assert seen == {"ray start", "mlflow server"}


def test_images_paths_and_variables_are_those_of_the_image(launcher):
    docker = launcher["docker"]
    own = launcher["available_node_types"]["cpu"]["docker"]["worker_image"]
    assert {docker["head_image"], own} == {f"condu-ray-cpu:{__version__}"}
    assert docker["worker_image"] == f"condu-ray-cuda:{__version__}"
    assert launcher["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--volume /mnt/condu:/mnt/condu" in docker["run_options"]
    mounts = " ".join(launcher["initialization_commands"])
    assert "/mnt/condu" in mounts
    assert "1000:1000" in mounts  # the image's user
    assert {"lookupcache=positive", "acdirmax=1"} <= set(mounts.replace(" ", ",").split(","))


def test_no_sqlite_file_is_on_the_shared_file_system(launcher):
    commands = " ".join(launcher["head_start_ray_commands"])
    (database,) = re.findall(r"sqlite:///(\S+)", commands)
    assert database.startswith("/home/ray/")
    assert "mkdir -p ~/mlflow" in commands
    for option in [*launcher["docker"]["run_options"]]:
        assert "sqlite" not in option


def test_variables_are_read_by_somebody(launcher):
    docker = launcher["docker"]
    for option in [*docker["run_options"], *docker["head_run_options"]]:
        if option.startswith("--env "):
            assert option.removeprefix("--env ").split("=")[0] in {"HF_HOME", *env.SETTINGS}
