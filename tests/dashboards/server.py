"""A Prometheus server of a test's own, on this machine only, that ends with its block."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def prometheus(config, data):
    """Starts Prometheus and yields its address.

    Args:
        config: its settings file.
        data: its folder; what is there is served.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = data.with_suffix(".log")
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=10y", "--log.level=warn",
    ]  # fmt: skip
    with log.open("w") as words:
        process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/-/ready", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
