"""Run a command on a cluster that has grown to what the command needs, and let the nodes go afterwards.

A run takes the room that it finds when it starts (`condu_ray.orchestration.cluster.room`) and refuses to wait for
more, so on a standing cluster whose GPU nodes are scaled to zero it has to be started through this:

    ray job submit -- python cluster/with_room.py --gpus 4 --cpus 16 -- python jobs/run_mtil.py ...

The request to the autoscaler is one for the whole cluster (`ray.autoscaler.sdk.request_resources`): a second call
replaces the first one's, so run one such command at a time on a cluster. A command that was killed with SIGKILL leaves
its request behind; `python cluster/with_room.py --release` takes it back.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

POLL_SECONDS = 2.0
SAY_SECONDS = 30.0
NO_ROOM = 3
"""Exit code when the nodes did not come in time."""


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Parses the flags; what follows `--` is the command."""
    parser = argparse.ArgumentParser(prog="with_room.py", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that the cluster shall have, one a bundle")
    parser.add_argument("--cpus", type=int, default=0, help="logical CPUs that it shall have, one a bundle")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds to wait for them")
    parser.add_argument("--release", action="store_true", help="take back a request that was left behind, then end")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    found = parser.parse_args(given)
    found.command = found.command[1:] if found.command[:1] == ["--"] else found.command
    if not found.release and not found.command:
        parser.error("no command: put it behind --")
    if not found.release and (found.gpus < 0 or found.cpus < 0 or found.gpus + found.cpus == 0):
        parser.error("ask for at least one CPU or GPU (--cpus, --gpus)")
    return found


def request(gpus: int, cpus: int) -> None:
    """Tells the autoscaler what the cluster shall hold at least; 0 and 0 takes the request back."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 1}] * gpus + [{"CPU": 1}] * cpus)


def await_room(gpus: int, cpus: int, timeout: float) -> bool:
    """Waits until the cluster has that much in all; returns whether it came in time."""
    import ray

    begin = said = time.monotonic()
    while True:
        has = ray.cluster_resources()
        if has.get("GPU", 0) >= gpus and has.get("CPU", 0) >= cpus:
            return True
        now = time.monotonic()
        if now - begin > timeout:
            return False
        if now - said > SAY_SECONDS:
            said = now
            here = f"{has.get('GPU', 0):g} of {gpus} GPUs and {has.get('CPU', 0):g} of {cpus} CPUs"
            print(f"waiting for nodes: {here} after {now - begin:.0f} s", flush=True)
        time.sleep(POLL_SECONDS)


def run(command: Sequence[str]) -> int:
    """Runs the command to its end, passing SIGTERM and SIGINT on; returns its exit code."""
    child = subprocess.Popen(command)
    passed_on = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda received, frame: child.send_signal(received)) for number in passed_on]
    try:
        code = child.wait()
    finally:
        for number, handler in zip(passed_on, before, strict=True):
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def main(given: Sequence[str]) -> int:
    """Returns the exit code: the command's own, or `NO_ROOM`."""
    wanted = arguments(given)
    import ray

    ray.init(address="auto", namespace="condu_ray/room", log_to_driver=False)
    try:
        if wanted.release:
            request(0, 0)
            return 0
        # Job stop sends SIGTERM: as an exception it goes through `finally`, and the nodes are let go.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            request(wanted.gpus, wanted.cpus)
            if not await_room(wanted.gpus, wanted.cpus, wanted.timeout):
                print(
                    f"error: the cluster did not grow to {wanted.gpus} GPUs and {wanted.cpus} CPUs within "
                    f"{wanted.timeout:g} s; look at maxReplicas, the quota of the nodes, and `ray status`",
                    file=sys.stderr,
                )
                return NO_ROOM
            return run(wanted.command)
        finally:
            request(0, 0)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
