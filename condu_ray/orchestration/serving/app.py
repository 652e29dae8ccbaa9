"""The application that Ray Serve deploys, and the configuration by which it is deployed: `build` is its import path."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from condu_ray.orchestration.serving.front import Front
from condu_ray.orchestration.serving.replicas import Router, multiplexed
from condu_ray.use.serving import ServeArguments, Serving, Source

NAME = "condu_ray"
"""Of the application."""
DEPLOYMENTS = ("Front", "Router", "Experts")
FRONT_CPUS = 0.1
"""Logical CPUs that a front asks for."""
SPARE = 64
"""Requests beside predictions (pages, probes) that a front takes at once."""
DRAIN_SECONDS = 10.0
"""How long a replica that is to end may take for the requests that it has."""


def build(args: dict[str, Any]) -> Application:
    """Returns the application.

    Args:
        args: fields of `ServeArguments`.

    Raises:
        ValidationError: a field is unknown or out of range.
    """
    arguments = ServeArguments.model_validate(args)
    serving, source = arguments.serving, arguments.source.model_dump(mode="json")
    plain = serving.model_dump(mode="json")
    ending: dict[str, Any] = {"graceful_shutdown_timeout_s": DRAIN_SECONDS, "graceful_shutdown_wait_loop_s": 0.5}
    beginning: dict[str, Any] = {"user_config": source, "max_constructor_retry_count": 2, **ending}
    models = {**_replicas(serving), **beginning, "max_ongoing_requests": serving.max_ongoing_requests,
              "max_queued_requests": serving.max_queued_requests}  # fmt: skip
    experts = serve.deployment(name="Experts", **models)(multiplexed(serving.experts_kept)).bind(plain)
    router = serve.deployment(name="Router", **models)(Router).bind(plain, experts)
    front = serve.deployment(
        name="Front",
        num_replicas=serving.fronts,
        ray_actor_options={"num_cpus": FRONT_CPUS},
        # A front counts predictions itself, and says so in a sentence: this is the last resort.
        max_ongoing_requests=serving.admitted + SPARE,
        max_queued_requests=serving.admitted + SPARE,
        **beginning,
    )(serve.ingress()(Front))
    return front.bind(plain, router, experts)


def _replicas(serving: Serving) -> dict[str, Any]:
    """How many replicas there are of a model, and what each asks Ray for."""
    asked = {"num_cpus": serving.cpus_per_replica} | (
        {"num_gpus": serving.gpus_per_replica} if serving.gpus_per_replica else {}
    )
    if serving.max_replicas == serving.min_replicas:
        return {"num_replicas": serving.min_replicas, "ray_actor_options": asked}
    scaling = {
        "min_replicas": serving.min_replicas,
        "max_replicas": serving.max_replicas,
        "target_ongoing_requests": serving.target_ongoing_requests,
    }
    return {"autoscaling_config": scaling, "ray_actor_options": asked}


def configuration(arguments: ServeArguments, now: Source, variables: dict[str, str]) -> dict[str, Any]:
    """Returns an application's configuration, as `serve deploy` and KubeRay's `serveConfigV2` take it.

    Args:
        arguments: of `build`; where they change, replicas are replaced.
        now: what is to be served; where this alone changes, it is loaded beside what is there and swapped.
        variables: environment variables of its replicas.
    """
    config = now.model_dump(mode="json")
    return {
        "name": NAME,
        "route_prefix": "/",
        "import_path": f"{build.__module__}:{build.__name__}",
        "runtime_env": {"env_vars": variables},
        "args": arguments.model_dump(mode="json"),
        "deployments": [{"name": name, "user_config": config} for name in DEPLOYMENTS],
    }
