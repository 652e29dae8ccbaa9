"""Serving from this process: Ray Serve is started, told what to serve, watched, and ended."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from condu_ray.orchestration.cluster import env, stop
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.orchestration.cluster.room import ResourceError, places, seats
from condu_ray.orchestration.serving.starting import announced, controller_options
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.use.serving import ServeArguments, Source

POLL_SECONDS = 0.2
START_SECONDS = 600.0
"""How long replicas may take to start: they import torch and load a state, each."""
GATEWAY_SECONDS = 5.0
"""What Ray Serve's proxy waits longer than a request's time limit before it ends one by itself, with 408."""


class ServeError(RunError):
    """Replicas that do not start, or end for good; the message says why."""


class Server:
    """Serves a source until it is told to stop; made by `serving`.

    Args:
        arguments: what is served, and how.
        host: where the proxy listens.
        port: of it; not 0.
        head: the machine that listens, where that is not this one.
    """

    def __init__(self, arguments: ServeArguments, host: str, port: int, head: str | None = None) -> None:
        self._arguments, self.host, self.port, self.head = arguments, host, port, head
        self.now = arguments.source

    @property
    def address(self) -> str:
        """Where people find it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def deploy(self, now: Source) -> None:
        """Says what is to be served; where something is served already, it is loaded beside that and swapped."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        from condu_ray.orchestration.serving.app import configuration

        variables = {name: os.environ[name] for name in env.SETTINGS if name in os.environ}
        application = configuration(self._arguments, now, variables)
        # What `serve deploy` sends to the dashboard, which a local cluster has none of.
        client: Any = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        self.now = now

    def failure(self) -> str | None:
        """Returns why it is not served, in a line; None: it is, or will be."""
        from ray import serve

        from condu_ray.orchestration.serving.app import NAME

        found = serve.status().applications.get(NAME)
        if found is None or found.status not in ("DEPLOY_FAILED", "UNHEALTHY"):
            return None
        told = [found.message, *(one.message for one in found.deployments.values())]
        return why(next((text for text in told if "Error" in text), told[0]))

    @property
    def running(self) -> bool:
        """Whether requests are answered."""
        from ray import serve

        from condu_ray.orchestration.serving.app import NAME

        found = serve.status().applications.get(NAME)
        return found is not None and found.status == "RUNNING"

    def wait(self) -> None:
        """Returns when it is served.

        Raises:
            ServeError: replicas fail to start.
        """
        end = time.monotonic() + START_SECONDS
        while not self.running:
            if (sentence := self.failure()) is not None:
                raise ServeError(sentence)
            if time.monotonic() > end:
                raise ServeError(f"replicas have not started within {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)


@contextmanager
def serving(
    arguments: ServeArguments, host: str, port: int, address: str | None = None, lines: Lines | None = None
) -> Iterator[Server]:
    """Serves within the block; what was started for it ends with it.

    Args:
        arguments: what is served, its source resolved.
        host: where the proxy listens.
        port: of it; 0: a free one.
        address: Ray cluster to join; None: RAY_ADDRESS, or a local one that ends with the block.
        lines: what is said meanwhile.

    Raises:
        ResourceError: Ray Serve is not installed, the port is taken, the cluster has no room for all replicas, or
            serves others.
        ServeError: replicas fail to start.
    """
    check_installed()
    port = free_port(host, port)
    lines = lines or Lines()
    with announced(), env.ray_cluster(address, "serve", lines):
        import ray
        from ray import serve

        from condu_ray.orchestration.serving.app import FRONT_CPUS, NAME

        for name in ("ray.serve", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        there = _others(host, port)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        check_room(arguments, ray.cluster_resources(), FRONT_CPUS, [node["Resources"] for node in nodes])
        options = {"host": host, "port": port, "request_timeout_s": arguments.time_limit + GATEWAY_SECONDS}
        serve.start(
            proxy_location="HeadOnly", http_options=options, logging_config={"enable_access_log": False},
            controller_options=controller_options(),
        )  # fmt: skip
        try:
            server = Server(arguments, host, port, elsewhere(nodes, ray.util.get_node_ip_address()))
            with lines.waiting("replicas start"):
                server.deploy(arguments.source)
                server.wait()
            yield server
        finally:
            if stop.asked() is not None:  # Ray's threads remark on actors that end; `stop.end` writes by itself
                sys.stdout.flush()
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            with suppress(Exception), env.quiet():  # the cluster may be gone; its raylet tells of actors that end
                serve.delete(NAME) if there else serve.shutdown()


def elsewhere(nodes: Sequence[Mapping[str, Any]], here: str) -> str | None:
    """Returns the address of a cluster's head, where it listens, where that is another machine than this one.

    Args:
        nodes: as `ray.nodes` describes them.
        here: this machine's address.
    """
    heads = [node["NodeManagerAddress"] for node in nodes if "node:__internal_head__" in node["Resources"]]
    return heads[0] if heads and here not in heads else None


def _others(host: str, port: int) -> bool:
    """Whether the cluster has Ray Serve already; refuses one that serves something, or listens elsewhere."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    try:
        there = serve.status()
    except RayServeException:
        return False
    if there.applications:
        raise ResourceError(
            f"the cluster serves {', '.join(there.applications)} already; end that, or deploy both by one file with "
            "`serve deploy` (cluster/README.md of the sources)"
        )
    if there.proxies:
        client: Any = _get_global_client()
        listens = f"{client.http_config.host}:{client.http_config.port}"
        if listens != f"{host}:{port}":  # it would go on so, whatever it is told
            raise ResourceError(
                f"the cluster has Ray Serve already, which serves nothing and listens at {listens}, not at {host}:"
                f"{port}; end it (`serve shutdown`, or ray.serve.shutdown() in Python) and give this command again"
            )
    return bool(there.proxies)


def check_installed() -> None:
    """Refuses an environment without the extra `serve`: Ray has `ray.serve` without it, but not what that needs.

    Raises:
        ResourceError: with what to install; Ray's own advice may bring another release of Ray.
    """
    try:
        import ray.serve  # noqa: F401
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"serving needs Ray Serve, which is not installed ({error.name} is missing): pip install 'condu_ray[serve]'"
        ) from error


def check_room(
    arguments: ServeArguments, resources: dict[str, float], front: float, nodes: Sequence[Mapping[str, float]] = ()
) -> None:
    """Refuses replicas that would wait for ever.

    Args:
        arguments: what is served, and how.
        resources: of the cluster.
        front: logical CPUs of a front.
        nodes: what each node has of it, for no replica is on two; none: one node has it all.

    Raises:
        ResourceError: the cluster has not what the fewest of them ask for.
    """
    models = 2 * arguments.min_replicas
    for name, wanted in (
        ("CPU", models * arguments.cpus_per_replica + arguments.fronts * front),
        ("GPU", models * arguments.gpus_per_replica),
    ):
        if wanted > resources.get(name, 0.0) + 1e-9:
            raise ResourceError(
                f"{models} replicas and {arguments.fronts} fronts ask for {wanted:g} {name}s, and the cluster has "
                f"{resources.get(name, 0.0):g}; lower --min_replicas or --{name.lower()}s_per_replica"
            )
    share, gpus = arguments.gpus_per_replica, resources.get("GPU", 0.0)
    if share and (found := places(gpus, share)) < models:
        raise ResourceError(
            f"{gpus:g} GPUs hold {found} replicas of {share:g} each, of which none is on two, and there are to be "
            f"{models}; lower --min_replicas or --gpus_per_replica"
        )
    if (held := seats(nodes or [resources], arguments.cpus_per_replica, share)) < models:
        raise ResourceError(
            f"the cluster's nodes hold {held} replicas of {arguments.cpus_per_replica:g} CPUs and {share:g} GPUs, of "
            f"which none is on two, and there are to be {models}; lower --min_replicas, --cpus_per_replica or "
            "--gpus_per_replica"
        )


def free_port(host: str, port: int) -> int:
    """Returns a port on which nobody listens.

    Raises:
        ResourceError: somebody does, or this machine has no such address.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            return int(tried.getsockname()[1])
    except OSError as error:
        raise ResourceError(
            f"{host}:{port}: cannot listen there ({os.strerror(error.errno or 0)}); give --host or --port"
        ) from error


def why(text: str) -> str:
    """Returns what was raised in a replica, of a message with its traceback: its last line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    raised = [line for line in lines if line.partition(":")[0].rpartition(".")[2].endswith(("Error", "Exception"))]
    return (raised or lines or ["no reason is given"])[-1]


def follow(server: Server, seconds: float, latest: Callable[[], Source], say: Callable[[str], None]) -> None:
    """Watches what is served; does not return.

    Args:
        server: what serves.
        seconds: how often a newer state is looked for; 0: never.
        latest: finds the newest.
        say: is told of swaps.

    Raises:
        ServeError: it is not served any more.
    """
    looked, healthy, said = time.monotonic(), time.monotonic(), ""
    while True:
        time.sleep(POLL_SECONDS)
        sentence = server.failure()
        if sentence is None:
            healthy = time.monotonic()
        elif time.monotonic() - healthy > START_SECONDS:  # while a replica that died is replaced, it is not yet so
            raise ServeError(sentence)
        if seconds and time.monotonic() - looked > seconds:
            looked = time.monotonic()
            try:
                found = latest()
            except Exception as error:  # storage may be out of reach for a while; what is served goes on
                if (words := f"no newer session can be looked for: {error}") != said:
                    say(words)  # once, and not at each look till storage is back
                said = words
                continue
            said = ""
            if found != (before := server.now):
                server.deploy(found)
                same = found == before.model_copy(update={"calibration": found.calibration})
                way = "with the temperatures measured now" if same else "to take the place of the one before it"
                say(f"session {found.session} of {found.run} is loaded {way}")
