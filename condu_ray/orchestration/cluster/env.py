"""Every environment variable and Ray setting that we depend on, each with its reason."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from condu_ray.orchestration.cluster import stop
from condu_ray.orchestration.cluster.background import busy, join
from condu_ray.orchestration.cluster.forks import forking, forks
from condu_ray.orchestration.cluster.head_watch import head_watched
from condu_ray.orchestration.cluster.local_head import lean
from condu_ray.orchestration.cluster.surroundings import TOKEN, SurroundingsError, check_surroundings, check_token

if TYPE_CHECKING:
    from condu_ray.orchestration.watch.lines import Lines

SETTINGS = {
    # The Train controller polls its workers every 2 s by default, and a worker's report waits for a poll.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # One actor process less a fit; where spot nodes announce their end, set it to 1 from outside.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray's usage report needs the network, and asks for it at every start.
    "RAY_USAGE_STATS_ENABLED": "0",
    # So does MLflow's, which a process waits for at its end.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Ray otherwise hides GPUs from processes that asked for none, with a warning a process.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # cuBLAS is deterministic only with a fixed workspace.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Tune otherwise prints a page about itself at every start, whatever its verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tokenizer libraries fork warnings into logs otherwise.
    "TOKENIZERS_PARALLELISM": "false",
}

OWN = uuid.uuid4().hex[:8]
"""What tells this process's actors from those of others on the cluster."""
END_SECONDS = 5.0
"""How long work beside the main thread may take to end after a block that has failed (`Engine.ending`)."""
DRIVER_SETTINGS = {
    # The driver's C++ side prints an error about how Ray Data's own actors are made; it is none of ours.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # The C++ side otherwise takes SIGTERM for a crash: a stack, and signal 6.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # Ray otherwise refuses a job's runtime_env that says one of SETTINGS too, though ours has what it says.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    # Tune otherwise prints a page of traceback for each trial that ends with a sweep, before what ended it is said.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # A local raylet otherwise prints a warning once it has started eight processes on two cores; we need a dozen.
    "RAY_worker_maximum_startup_concurrency": "4",
}
"""What the driver sets for itself and a local cluster that it starts, but not for workers of a cluster."""


def apply() -> None:
    """Sets the variables that are not set from outside; must run before ray.train is imported."""
    for name, value in (SETTINGS | DRIVER_SETTINGS).items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_cluster(address: str | None, run: str, lines: Lines) -> Iterator[None]:
    """Joins a cluster, or starts a local one that ends with the block, or with the process where work goes on in it.

    A process that has joined one already (`ray.init()` in a notebook) stays there, whatever the address, and after the
    block too.

    Args:
        address: Ray address; None takes RAY_ADDRESS, and where that is unset, a local cluster.
        run: the run's or sweep's name.
        lines: says that Ray starts, where it takes long.

    Raises:
        SurroundingsError: the cluster cannot be joined, or none started.
    """
    apply()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    check_surroundings(address)
    import ray

    if ray.is_initialized():
        try:
            yield
        finally:
            _leave(namespace(run))
        return
    from condu_ray.orchestration.watch.discovery import announced

    with forks(address), _watched(address, lines), ray_heard(lines):
        try:
            with lines.waiting("Ray starts"):
                _init(address, namespace(run))
            head = str(ray.get_runtime_context().gcs_address) if address == "auto" else ""
            with announced() if address == "local" else _watched(head, lines):
                yield
        finally:
            if stop.asked() is None and _quiet(run):  # else the process ends, and its cluster with it
                ray.shutdown()


def _watched(address: str, lines: Lines) -> AbstractContextManager[object]:
    """Says of a cluster's head when it is gone, where its address has host and port: `auto` has them once joined.

    Not by `ray://`, where what holds is the client's connection: the head's GCS, whose address it is told, need not be
    reached from here.
    """
    if "://" in address or ":" not in address:
        return nullcontext()
    from rich.markup import escape

    return head_watched(address, lambda words: lines.say(escape(words)))


@contextmanager
def ray_heard(lines: Lines) -> Iterator[None]:
    """Says in a line what Ray tells a driver of workers and nodes that died: its own words are a paragraph of numbers.

    Args:
        lines: says it.
    """
    from ray._private import worker
    from rich.markup import escape

    def say(data: Any, ignore_prefix: bool) -> None:
        for text in data["lines"]:
            first, *more = text.strip().split(". ")
            kept = [first, *(one for one in more if "will be retried" in one)]
            lines.say(escape(f"Ray tells: {'. '.join(kept)}"))

    told = worker.print_to_stdstream  # of the thread that listens; workers' own output is asked for by nobody
    worker.print_to_stdstream = say
    try:
        yield
    finally:
        worker.print_to_stdstream = told


def _quiet(run: str) -> bool:
    """Whether Ray can be taken down: a thread that waits for it meanwhile can bring the process down by a signal."""
    if busy():  # after a block that has failed, or whose lanes take long to close
        with suppress(Exception):  # what the block raised is what counts
            _leave(namespace(run))
    return join(END_SECONDS)


def namespace(run: str) -> str:
    """Returns the namespace of a run's actors, explicit because a driver's default one is random.

    It is this process's own: a cluster that several share may have a run of the same name, in another storage.
    """
    return f"condu_ray/{run}/{OWN}"


def _leave(space: str) -> None:
    """Ends the actors of a run on a cluster that goes on: its lanes end for want of their board."""
    import ray
    from ray.util import list_named_actors

    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == space:
            with suppress(ValueError):  # it ended by itself
                ray.kill(ray.get_actor(actor["name"], namespace=space))


def _init(address: str, space: str) -> None:
    """Calls `ray.init`, and keeps to ourselves what it would say and whose signal it would take."""
    import ray

    check_token(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with quiet(), forking(), lean(address):
            ray.init(
                address=address,
                namespace=space,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {name: os.environ[name] for name in SETTINGS}},
                **options,
            )
    except SystemExit:  # by Ray's own handler
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    except Exception as error:
        if not isinstance(error, OSError | RuntimeError | ValueError) and type(error) is not Exception:
            raise
        # Ray raises a bare Exception for a node that takes too long to start, as on a machine that is very busy.
        what = "no Ray cluster can be started here" if address == "local" else f"no cluster can be joined at {address}"
        said = (str(error).strip() or type(error).__name__).splitlines()
        why = f"{said[0]} {said[-1].strip()}" if said[0].endswith(":") and said[1:] else said[0]
        if _wants_token(error):
            why += f"; it asks for a token: {TOKEN}"
        raise SurroundingsError(f"{what}: {why}; see --cluster.address, RAY_ADDRESS and RAY_TMPDIR") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _wants_token(error: BaseException | None) -> bool:
    """Whether a cluster has refused who has no token of it; Ray says so only in what its error came of.

    A cluster that `ray start` begins asks for one where there is one, and Ray brings it along only to `auto`.
    """
    while error is not None:
        if "InvalidAuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Leads this process's error output to nowhere: Ray's C++ side remarks there on the log level that we set."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def quiet_data() -> None:
    """Ray Data announces each execution at INFO; at WARNING, what `room` has seen to, and that its bars are off."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for noisy in ("progress", "execution.resource_manager", "issue_detection"):
        logging.getLogger(f"ray.data._internal.{noisy}").setLevel(logging.ERROR)


def named(name: str, run: str) -> dict[str, Any]:
    """Returns the options of an actor that is found by its name, on the driver's node, without which all ends anyway.

    The head runs the driver of a submitted job; what remembers must not stand on a spot node. With `soft=True`, Ray
    2.60 puts every other of such actors elsewhere where the driver's node has no CPUs.

    Args:
        name: among the actors of its run.
        run: the run's or sweep's name.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(here, soft=False)
    return {"name": name, "namespace": namespace(run), "scheduling_strategy": place}
