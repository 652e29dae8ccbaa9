"""What Ray starts in place of its own script: it hands over, or becomes what Ray would have started."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from condu_ray.orchestration.cluster import forked_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Unix sockets with files")


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Has something answer at the socket: says what it was asked, and what was said then."""
    heard, listening = {}, socket.socket(socket.AF_UNIX)
    path = os.path.relpath(tmp_path / "s")  # a path may have some hundred characters
    listening.bind(path)
    listening.listen()
    monkeypatch.setenv(forked_worker.SOCKET, path)

    def begin(answer):
        def work():
            client, _ = listening.accept()
            with client:
                head, files, _, _ = socket.recv_fds(client, 8, 3)
                left, message = int.from_bytes(head, "big"), b""
                while len(message) < left:
                    message += client.recv(left - len(message))
                heard.update(json.loads(message), files=len(files))
                for file in files:
                    os.close(file)
                if answer:
                    client.sendall(answer)
                    heard["then"] = client.recv(1)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    yield heard, begin
    listening.close()


def test_it_hands_over_and_says_that_it_will_not_be_the_worker(answers):
    heard, begin = answers
    thread = begin(b"y")
    assert forked_worker.forked(["--a", "b"])
    thread.join()
    assert heard["arguments"] == ["--a", "b"]
    assert heard["environment"] == dict(os.environ)
    assert (heard["folder"], heard["files"], heard["then"]) == (os.getcwd(), 3, b"y")
    assert heard["oom"].lstrip("-").isdigit()


@pytest.mark.parametrize("answer", [b"", b"n"])
def test_where_it_is_refused_it_is_the_worker(answers, answer):
    heard, begin = answers
    thread = begin(answer)
    assert not forked_worker.forked([])
    thread.join()
    assert heard.get("then", b"") == b""


def test_a_server_that_takes_too_long_is_not_waited_for(answers, monkeypatch):
    monkeypatch.setattr(forked_worker, "SECONDS", 0.05)
    assert not forked_worker.forked([])


@pytest.mark.parametrize("path", [None, "nothing/there"])
def test_without_a_server_it_becomes_what_ray_would_have_started(tmp_path, path):
    package = tmp_path / "ray"
    (package / "_private/workers").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not loaded')")
    (package / "_private/workers/setup_worker.py").write_text("import os, sys; print(sys.argv[1:], os.getpid())")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment.pop(forked_worker.SOCKET, None)
    if path:
        environment[forked_worker.SOCKET] = str(tmp_path / path)
    process = subprocess.Popen([sys.executable, forked_worker.__file__, "--a", "b c"], env=environment,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.communicate()[0].strip() == f"['--a', 'b c'] {process.pid}"
