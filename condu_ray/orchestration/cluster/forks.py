"""Workers of a local cluster that are forked from one process, `fork_server.py`: when, and for how long.

Only on Linux and where there is no GPU: elsewhere forks are unsafe, or nobody waits for imports.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from condu_ray.orchestration.cluster import fork_server, forked_server, forked_worker

SWITCH = "CONDU_RAY_FORK"
"""The environment variable that, when 0, has each worker load everything for itself."""

GPUS = ((Path("/dev"), "nvidia[0-9]*"), (Path("/dev"), "kfd"))
"""Where the system shows a GPU: folders, and names in them."""

SETTLE_SECONDS = 1.0
"""How long threads that have ended may take to be gone."""

_paths: list[str] = []


@contextmanager
def forks(address: str | None, loading: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Has a fork server while the block runs, with what workers will need loaded, or being loaded.

    Within another such block, and where none is of use (a cluster is joined, there is a GPU), nothing happens.

    Args:
        address: of the cluster to be joined or started, as `ray_cluster` takes it.
        loading: says that this process, a command's, loads the libraries, which the server, a fork of it, need not
            then; None: the server is a program of its own.
    """
    if _paths or not _of_use(address):
        yield
        return
    try:
        end, path = _begun(loading)
    except OSError:  # as where the temporary folder's name is too long for a socket: workers start as ever
        yield
        return
    _paths.append(path)
    try:
        yield
    finally:
        _paths.remove(path)
        end()
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def _begun(loading: AbstractContextManager[None] | None) -> tuple[Callable[[], object], str]:
    """Begins the server; returns what ends it, and its socket's path."""
    folder = Path(tempfile.mkdtemp(prefix="condu_ray-"))
    path = str(folder / "fork")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(path)
            listening.listen(64)
            if loading is not None:
                with loading:
                    ready = forked_server.loaded()
                if ready and _alone():
                    return _forked(listening, path), path
            process = subprocess.Popen(
                [sys.executable, fork_server.__file__, path],
                stdin=subprocess.PIPE,  # its end tells the server that this process is gone, whatever ended it
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                env=os.environ | {fork_server.LISTENS: str(listening.fileno())},
                start_new_session=True,
            )
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    def end() -> None:
        process.kill()
        process.communicate()

    return end, path


def _alone() -> bool:
    """Whether no thread runs that a fork would miss; one that has ended is there for a moment more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (found := fork_server.alone()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _forked(listening: socket.socket, path: str) -> Callable[[], object]:
    here, there = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        forked_server.forked(listening, path, here)
    os.close(here)

    def end() -> None:
        os.close(there)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    return end


@contextmanager
def forking() -> Iterator[None]:
    """Has the cluster that Ray starts in the block ask the fork server for its workers, where there is one."""
    from ray._private import ray_constants

    name = "SETUP_WORKER_FILENAME"  # joined to Ray's folder, which an absolute path replaces
    if not _paths or not hasattr(ray_constants, name):
        yield
        return
    before = getattr(ray_constants, name)
    setattr(ray_constants, name, forked_worker.__file__)
    os.environ[forked_worker.SOCKET] = _paths[0]
    try:
        yield
    finally:
        setattr(ray_constants, name, before)
        del os.environ[forked_worker.SOCKET]


def _of_use(address: str | None) -> bool:
    local = (address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    joined = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    gpus = any(any(folder.glob(name)) for folder, name in GPUS)
    return local and not joined and not gpus and sys.platform == "linux" and os.environ.get(SWITCH) != "0"
