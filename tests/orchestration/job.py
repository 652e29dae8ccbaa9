"""A job of the command line as a process that tests can wait for, look into and kill."""

import json
import subprocess
import time
import uuid
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from condu_ray.orchestration.cluster import stop
from condu_ray.orchestration.cluster.background import join
from jobs.faults.victim import ROOT, Victim

__all__ = ["ROOT", "Called", "Job"]


class Job(Victim):
    """One call of a job, in a process of its own as a user's would be; one lane, for start-up is what costs here."""

    script = "run_mtil.py"

    def __init__(self, storage, task_data, small_backbone, *flags, environment=None, **more):
        self.storage = Path(storage)
        log = self.storage.with_name(f"{uuid.uuid4().hex}.log")
        command = self.flags(storage, task_data, small_backbone, *flags, **more)
        super().__init__(self.script, command, log, environment)

    @staticmethod
    def flags(storage, task_data, small_backbone, *flags, method="condu", steps=40, lanes=1):
        return [
            "--data", str(task_data), "--pretrained", str(small_backbone), "--method", method, "--training.steps",
            str(steps), "--training.batch_size", "8", "--training.lanes", str(lanes), "--storage", str(storage),
            *(() if "--run" in flags else ("--run", "r")), *flags,
        ]  # fmt: skip

    def finish(self, timeout=240):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            raise
        assert code == 0, self.log.read_text()
        return self.report

    @property
    def report(self):
        return json.loads((self.storage / "runs" / "r" / "report" / "results.json").read_text())

    def wait_for(self, condition, timeout=120):
        deadline = time.monotonic() + timeout
        while not condition():
            self.look()
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"waited in vain; {self.log.read_text()}"
            time.sleep(0.02)

    @property
    def experts(self):
        return sorted(path.parent.name for path in self.storage.glob("experts/[!.]*/meta.json"))

    @property
    def merges(self):
        ledger = self.storage / "runs" / "r" / "condu" / "ledger.jsonl"
        return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []

    @property
    def final(self):
        """The final unified delta's file, byte for byte, and every expert's."""
        last = max(self.merges, key=lambda entry: entry["position"])
        folder = self.storage / "runs" / "r" / "condu" / "sessions" / f"03-cars-{last['state']}"
        experts = {key: (self.storage / "experts" / key / "delta.safetensors").read_bytes() for key in self.experts}
        return (folder / "unified.safetensors").read_bytes(), experts


class Called(Job):
    """One call of a job's command in this process, which has joined a cluster where it needs one.

    Attributes:
        code: with what it ended; a sentence in place of 1, as Python prints it.
    """

    def __init__(self, main, flags, storage):
        self.storage, self.code = Path(storage), 0
        self.log = self.storage.with_name(f"{uuid.uuid4().hex}.log")
        with (
            self.log.open("w") as said,
            redirect_stdout(said),
            redirect_stderr(said),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(stop, "busy", lambda: False)  # a command that fails ends no process that is not its own
            try:
                main(flags)
            except SystemExit as end:
                self.code = end.code
            assert join(60)

    def finish(self):
        assert self.code == 0, (self.code, self.log.read_text())
        return self.report
