"""The load test by its small size: answers compared, overload, killed replicas, swaps; and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest

from condu_ray.report.results_page import read_results
from jobs.bench import serve
from tests.orchestration.serving.test_serving import until

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_nothing_is_lost_under_load_kills_and_swaps(storage, task_data, tmp_path):
    path = tmp_path / "serving.json"
    arguments = ["r", "--storage", str(storage), "--method", "condu", "--data", str(task_data), "--seconds", "2"]
    code = serve.main([*arguments, "--json", str(path)])
    rows = {(row[0], row[1]): dict(zip(serve.COLUMNS, row, strict=True)) for row in read_results(path)["rows"]}
    assert code == 0, rows
    assert all(row["answered"] for row in rows.values())
    assert rows["overload", 400]["503"] > 0
    assert rows["two swaps of the session", 64]["lost"] == 0
    assert rows["a replica of Experts killed", 8]["lost"] == 0
    json.loads(path.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(storage, number, tmp_path):
    said = tmp_path / "said"
    command = [sys.executable, "-m", "condu_ray.commands", "serve", "r", "--storage", str(storage), "--method", "condu"]
    with said.open("w") as out:
        ended = subprocess.Popen([*command, "--port", "0", "--threads", "1"], stdout=out, stderr=out)
        try:
            until(lambda: "http://127.0.0.1:" in said.read_text() or ended.poll() is not None, 500)
            address = next(word for word in said.read_text().split() if word.startswith("http://"))
            with urlopen(f"{address}healthz", timeout=60) as answer:
                assert json.load(answer)["status"] == "ok"
            children = descendants(ended.pid)
            assert len(children) > 3
            ended.send_signal(number)
            code = ended.wait(30)
        finally:
            ended.kill()
            ended.wait()
    assert code == 128 + number
    after = said.read_text().partition("(Ctrl-C ends it)")[2].strip()
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert after == f"stopped by {name}: nothing is served any more, and the run is as it was"
    assert "Traceback" not in said.read_text()
    end = time.monotonic() + 90  # on a machine that is full
    while any(map(alive, children)):
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.2)


def descendants(pid):
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, found.splitlines())}
    return [child for child in parents if pid in ancestors(child, parents)]


def ancestors(pid, parents):
    while (pid := parents.get(pid, 0)) > 1:
        yield pid


def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ProcessLookupError):
        return False
