"""What the manifests start: the settings behind an entry point, and the room that its cluster has."""

import shlex
from typing import Any

from condu_ray.command_line import parse
from condu_ray.config import Experiment, Sweep

KINDS: dict[str, type[Experiment]] = {"jobs/run_mtil.py": Experiment, "jobs/sweep_orders.py": Sweep}


def settings(entrypoint: str) -> tuple[str, Experiment]:
    """Returns an entry point's script and what it would read from its flags."""
    python, script, *flags = shlex.split(entrypoint)
    assert python == "python"
    return script, parse(flags, KINDS[script])


def resources(spec: dict[str, Any], replicas: str = "replicas") -> dict[str, float]:
    """Returns logical CPUs and GPUs of a cluster's workers, as KubeRay passes them to `ray start`."""
    found = {"CPU": 0.0, "GPU": 0.0}
    for group in spec["workerGroupSpecs"]:
        asked = group["template"]["spec"]["containers"][0]["resources"]
        found["CPU"] += group[replicas] * float(asked["limits"].get("cpu", asked["requests"]["cpu"]))
        found["GPU"] += group[replicas] * float(asked["limits"].get("nvidia.com/gpu", 0))
    return found
