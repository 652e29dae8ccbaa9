"""A job of the command line as a process that tests can wait for, look into and kill."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


class Job:
    """One call of a job, in a process of its own as a user's would be; one lane, for start-up is what costs here."""

    script = "run_mtil.py"

    def __init__(self, storage, task_data, small_backbone, *flags, method="condu", steps=40, lanes=1):
        command = [
            sys.executable, str(ROOT / "jobs" / self.script), "--data", str(task_data), "--pretrained",
            str(small_backbone), "--method", method, "--training.steps", str(steps), "--training.batch_size", "8",
            "--training.lanes", str(lanes), "--storage", str(storage),
            *(() if "--run" in flags else ("--run", "r")), *flags,
        ]  # fmt: skip
        self.storage, self.log = Path(storage), Path(storage).with_name(f"{uuid.uuid4().hex}.log")
        self._family: dict[int, psutil.Process] = {}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def finish(self, timeout=240):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            raise
        assert code == 0, self.log.read_text()
        return json.loads((self.storage / "runs" / "r" / "report" / "results.json").read_text())

    def stop(self):
        for child in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            child.kill()

    def stop_children(self):
        """Kills what a killed driver leaves behind, and waits until it is gone."""
        for child in self._family.values():
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(list(self._family.values()), timeout=20)

    def wait_for(self, condition, timeout=120):
        deadline = time.monotonic() + timeout
        while not condition():
            self._family |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"waited in vain; {self.log.read_text()}"
            time.sleep(0.02)

    def kill(self, title):
        """SIGKILLs the Ray processes whose title starts so; returns how many."""
        killed = 0
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(child.cmdline()).startswith(f"ray::{title}"):
                    child.send_signal(signal.SIGKILL)
                    killed += 1
            except psutil.Error:
                continue
        return killed

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
