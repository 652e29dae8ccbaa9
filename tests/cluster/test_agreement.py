"""The manifests against the code that they run: flags, resources, variables, paths, versions."""

import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from consistency import pod_templates
from entry_points import resources, settings
from operators import ray_clusters
from places import BUCKET, KUBERNETES, MOUNT, ROOT, SMALL, in_bucket
from rendering import applied, containers

from condu_ray.command_line import ConfigError
from condu_ray.config import Sweep
from condu_ray.methods import METHODS
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster import room as rooms
from condu_ray.store.location import Location

RAY = {"RayCluster", "RayJob", "RayService"}
JOBS = [str(path.relative_to(KUBERNETES)) for path in applied(KUBERNETES) if path.name in {"run", "sweep"}]


def job(rendered, overlay):
    (thing,) = rendered[overlay]
    return thing["spec"]


@pytest.mark.parametrize("overlay", JOBS)
def test_entry_points_are_scripts_whose_flags_are_right(rendered, overlay):
    script, config = settings(job(rendered, overlay)["entrypoint"])
    assert (ROOT / script).is_file()
    assert config.run
    home = BUCKET if in_bucket(overlay) else MOUNT
    assert config.storage == Location(f"{home}/storage")
    assert set(config.method) <= set(METHODS)
    if config.data is not None:
        assert str(config.data).startswith(f"{home}/")
    if isinstance(config, Sweep):
        assert config.orders == "12"
        assert config.method == ("condu", "ties", "average", "sequential", "pam")


@pytest.mark.parametrize("wrong", ["--training.max_failure 20", "--method", "--cluster.decoders many"])
def test_a_wrong_flag_would_be_found(wrong):
    with pytest.raises(ConfigError):
        settings(f"python jobs/run_mtil.py {wrong} --run x")


def test_no_two_jobs_share_a_run(rendered):
    names = {
        (Path(overlay).parent.name, Path(overlay).name): settings(job(rendered, overlay)["entrypoint"])[1].run
        for overlay in JOBS
    }
    for (nodes, kind), name in names.items():
        for (others, other), same in names.items():
            assert (name == same) == ((kind, nodes in SMALL) == (other, others in SMALL))


@pytest.mark.parametrize("overlay", JOBS)
def test_the_workers_of_a_job_hold_its_lanes(rendered, overlay):
    spec = job(rendered, overlay)
    _, config = settings(spec["entrypoint"])
    room = rooms.room_for(config, resources(spec["rayClusterSpec"]))
    on_gpus = Path(overlay).parent.name not in SMALL
    assert (room.lanes, room.gpus_per_worker, room.evaluators) == ((3, 1.0, 1) if on_gpus else (4, 0.0, 2))


def test_jobs_on_gpus_refuse_a_cluster_without(rendered):
    _, config = settings(job(rendered, "overlays/gpu/run")["entrypoint"])
    with pytest.raises(rooms.ResourceError, match="no GPU"):
        rooms.room(
            {"CPU": 28.0}, workers=1, threads=1, cpus_per_worker=0.5, decoders=1, lanes=0, evaluators=0,
            gpus_per_worker=config.cluster.gpus_per_worker,
        )  # fmt: skip


def test_storage_is_mounted_at_one_path_everywhere(rendered):
    for overlay in (str(path.relative_to(KUBERNETES)) for path in applied(KUBERNETES)):
        for thing, spec in ray_clusters([t for t in rendered[overlay] if t["kind"] in RAY]):
            for place, template in pod_templates(spec):
                (mount,) = template["spec"]["containers"][0]["volumeMounts"]
                (volume,) = template["spec"]["volumes"]
                assert mount == {"name": volume["name"], "mountPath": MOUNT}, (thing["kind"], place)
                if not in_bucket(overlay):
                    assert volume["persistentVolumeClaim"]["claimName"] == "condu-storage"


def test_no_pod_of_a_bucket_s_overlay_needs_a_shared_volume(rendered):
    found = [name for name in rendered if in_bucket(name)]
    assert len(found) == 3
    for overlay in found:
        assert "condu-storage" not in json.dumps(rendered[overlay])
        for thing, spec in ray_clusters([t for t in rendered[overlay] if t["kind"] in {"RayCluster", "RayJob"}]):
            for place, template in pod_templates(spec):
                (container,) = template["spec"]["containers"]
                (volume,) = template["spec"]["volumes"]
                values = {entry["name"]: entry["value"] for entry in container["env"]}
                assert values["CONDU_RAY_CACHE"].startswith(f"{MOUNT}/"), (thing["kind"], place)
                size = (
                    volume.get("emptyDir", {}).get("sizeLimit")
                    or (volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"])
                )
                assert float(values["CONDU_RAY_CACHE_GB"]) * 1e9 < 0.8 * int(size.removesuffix("Gi")) * 2**30
                assert container["envFrom"] == [{"secretRef": {"name": "condu-bucket"}}]


def known_variables():
    """Variables that somebody reads, each looked up in the source that is said to read it."""
    sources = {
        "MLFLOW_TRACKING_URI": ("condu_ray", "orchestration/watch/mlflow_address.py"),
        "HF_HOME": ("huggingface_hub", "constants.py"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": ("ray", "_private/ray_constants.py"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": ("mlflow", "environment_variables.py"),
        "MLFLOW_DISABLE_TELEMETRY": ("mlflow", "environment_variables.py"),
        "CONDU_RAY_CACHE": ("condu_ray", "store/node_cache.py"),
        "CONDU_RAY_CACHE_GB": ("condu_ray", "store/node_cache.py"),
    }
    for name, (package, file) in sources.items():
        path = Path(find_spec(package).origin).parent / file
        assert re.search(rf"\b{name}\b", path.read_text()), f"{path} does not know {name}"
    return set(sources) | set(env.SETTINGS) | set(env.DRIVER_SETTINGS)


OTHERS = {"HOME", "REDIS_PASSWORD", "REDISCLI_AUTH"}
"""The shell's; our own in the container's command; redis-cli's (redis.io/docs, "redis-cli", host, port, password)."""


def test_every_variable_is_read_by_somebody(rendered):
    known = known_variables() | OTHERS
    for objects in rendered.values():
        for thing in objects:
            for container in containers(thing):
                for entry in container.get("env", []):
                    assert entry["name"] in known, f"{thing['metadata']['name']}: {entry['name']}"
                    if entry["name"] == "REDIS_PASSWORD":
                        assert "$REDIS_PASSWORD" in container["args"][0]


def test_spot_switches_the_preemption_watcher_on_where_the_driver_reads_it(rendered):
    assert env.SETTINGS["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    head = job(rendered, "overlays/gpu-spot/run")["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][
        0
    ]
    assert {"name": "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "value": "1"} in head["env"]


def test_versions_are_the_locks(rendered):
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for objects in rendered.values():
        for _, spec in ray_clusters([thing for thing in objects if thing["kind"] in RAY]):
            assert spec["rayVersion"] == locked["ray"] == version("ray")


def test_ray_start_knows_every_parameter(rendered):
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    for objects in rendered.values():
        for _, spec in ray_clusters([thing for thing in objects if thing["kind"] in RAY]):
            for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
                assert set(group["rayStartParams"]) <= known


def test_mlflow_knows_every_argument(rendered):
    from mlflow.cli import server

    (container,) = containers(next(t for t in rendered["services"] if t["kind"] == "Deployment"))
    given = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert container["command"] == ["mlflow", "server"]
    assert set(given) <= {name.removeprefix("--") for option in server.params for name in option.opts}
    assert int(given["port"]) == container["ports"][0]["containerPort"]
    data = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "data")
    assert given["backend-store-uri"].startswith(f"sqlite:///{data}/")  # four slashes: an absolute path
    assert given["artifacts-destination"].startswith(f"{data}/")
    writable = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert next(entry["value"] for entry in container["env"] if entry["name"] == "HOME") in writable


def test_images_are_ours_at_our_version_or_pinned(rendered):
    from condu_ray import __version__

    images = {c["image"] for objects in rendered.values() for thing in objects for c in containers(thing)}
    assert images == {f"condu-ray-cpu:{__version__}", f"condu-ray-cuda:{__version__}", "redis:7.4-bookworm"}


def test_only_pods_that_ask_for_a_gpu_have_the_image_that_shows_all(rendered):
    for objects in rendered.values():
        for thing in objects:
            for container in containers(thing):
                asks = "nvidia.com/gpu" in container["resources"].get("limits", {})
                assert asks == ("cuda" in container["image"]), thing["metadata"]["name"]
