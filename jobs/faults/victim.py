"""A job of the command line in a process that can be looked into and killed, with everything that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from jobs.faults.hook.kill_points import role_of

ROOT = Path(__file__).parents[2]


class Victim:
    """One call of a job, as a user's would be.

    Args:
        script: file in `jobs/`.
        flags: its flags.
        log: where its output is appended.
        environment: added to this process's, but for Ray's and MLflow's settings.
    """

    def __init__(
        self, script: str, flags: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._family: dict[int, psutil.Process] = {}
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        with log.open("a", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / script), *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=plain | dict(environment or {}),
            )

    def look(self) -> None:
        """Remembers what the job has started, which its death would make orphans."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self._family.setdefault(child.pid, child)

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Returns the living processes by what they are."""
        self.look()
        found: dict[str, list[psutil.Process]] = {}
        for child in list(self._family.values()):
            with suppress(psutil.Error):
                found.setdefault(role_of(" ".join(child.cmdline())), []).append(child)
        return found

    def kill(self, role: str) -> int:
        """SIGKILLs all processes of a role, or the `driver`, or with it everything that it started: the `machine`.

        Returns:
            How many were killed.
        """
        if role in ("driver", "machine"):
            self.look()
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            return 1 + (self.clear() if role == "machine" else 0)
        killed = 0
        for child in self.roles().get(role, ()):
            with suppress(psutil.NoSuchProcess):
                child.kill()
                killed += 1
        return killed

    def stop(self) -> None:
        """Kills the job, if it lives, and all that it started."""
        self.look()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.clear()

    def clear(self) -> int:
        """Kills what a dead job left behind, waits until it is gone, and returns how many there were."""
        for orphan in list(self._family.values()):
            with suppress(psutil.NoSuchProcess):
                self._family |= {child.pid: child for child in orphan.children(recursive=True)}
        left = [child for child in self._family.values() if child.is_running()]
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=20)
        return len(left)
