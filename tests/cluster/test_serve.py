"""The manifests that serve against the code that they start: settings, names, the run, and the room for replicas."""

import re
from pathlib import Path

import pytest
import yaml
from entry_points import resources, settings
from places import KUBERNETES, MOUNT
from rendering import applied

from condu_ray.orchestration.serving import app
from condu_ray.orchestration.serving.server import GATEWAY_SECONDS, check_room
from condu_ray.use.serving import ServeArguments, Source

OVERLAYS = [str(path.relative_to(KUBERNETES)) for path in applied(KUBERNETES) if path.name == "serve"]


def served(rendered, overlay):
    """The overlay's RayService, and its Serve configuration as Ray Serve reads it."""
    from ray.serve.schema import ServeDeploySchema

    (thing,) = rendered[overlay]
    return thing["spec"], ServeDeploySchema.model_validate(yaml.safe_load(thing["spec"]["serveConfigV2"]))


def test_both_kinds_of_nodes_serve():
    assert OVERLAYS == ["overlays/cpu-small/serve", "overlays/gpu/serve"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_is_what_the_run_of_these_nodes_writes(rendered, overlay):
    _, config = served(rendered, overlay)
    (application,) = config.applications
    arguments = ServeArguments.model_validate(application.args)
    _, run = settings(rendered[overlay.replace("serve", "run")][0]["spec"]["entrypoint"])
    assert (arguments.run, Path(arguments.storage)) == (run.run, Path(run.storage))
    assert arguments.method in run.method
    assert arguments.storage.startswith(f"{MOUNT}/")
    assert [one.name for one in application.deployments] == list(app.DEPLOYMENTS)
    assert {Source.model_validate(one.user_config) for one in application.deployments} == {arguments.source}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_is_the_commands_own_for_a_cluster(rendered, overlay):
    spec, config = served(rendered, overlay)
    (application,) = config.applications
    arguments = ServeArguments.model_validate(application.args)
    own = app.configuration(arguments, arguments.source, {})
    assert (application.name, application.route_prefix) == (own["name"], own["route_prefix"])
    assert application.import_path == own["import_path"]
    assert config.http_options.host == "0.0.0.0"
    assert config.http_options.request_timeout_s == arguments.time_limit + GATEWAY_SECONDS
    ports = {port["name"]: port["containerPort"] for group in spec["rayClusterConfig"]["workerGroupSpecs"]
             for port in group["template"]["spec"]["containers"][0]["ports"]}  # fmt: skip
    assert ports["serve"] == config.http_options.port == 8000


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_application_is_built_and_its_workers_hold_it(rendered, overlay):
    spec, config = served(rendered, overlay)
    arguments = ServeArguments.model_validate(config.applications[0].args)
    assert app.build(config.applications[0].args) is not None
    here = resources(spec["rayClusterConfig"])
    check_room(arguments, here, app.FRONT_CPUS)
    most = resources(spec["rayClusterConfig"], "maxReplicas")
    check_room(arguments.model_copy(update={"min_replicas": arguments.max_replicas}), most, app.FRONT_CPUS)


def test_a_wrong_setting_would_be_found(rendered):
    _, config = served(rendered, OVERLAYS[0])
    with pytest.raises(ValueError, match="time_limits"):
        app.build({**config.applications[0].args, "time_limits": 3})


def test_the_page_says_how():
    page = (KUBERNETES.parent / "README.md").read_text()
    for overlay in OVERLAYS:
        assert f"kubectl apply -k cluster/kubernetes/{overlay}" in page
    assert re.search(r"kubectl label namespace \S+ condu-ray/asks=true", page)
