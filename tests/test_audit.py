import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("uv", reason="`make setup` installs uv, which the audit asks everything")
REPOSITORY = Path(__file__).parents[1]
CLOSED = "http://127.0.0.1:9/"  # the discard port, where nothing listens
NOT_LOOKED_UP = "known vulnerabilities were not looked up"
LOCK = """\
alpha==1.0 \\
    --hash=sha256:00
    # via pretended
beta==2.0 ; sys_platform == 'win32'  # not installed here, but audited
"""


class Pretender(BaseHTTPRequestHandler):
    """Answers as a package index (the simple JSON API, with metadata beside the wheels) and as OSV's service."""

    def reply(self, body: object, kind: str = "application/json", status: int = 200) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        _, kind, *_, name = self.path.rstrip("/").split("/")
        if kind == "simple" and name in self.server.releases:
            version, yanked = self.server.releases[name]
            wheel = f"{name}-{version}-py3-none-any.whl"
            file = {"filename": wheel, "url": f"/files/{wheel}", "yanked": yanked}
            file |= {"hashes": {"sha256": "0" * 64}, "core-metadata": True}
            status = {"status": self.server.statuses.get(name, "active")}
            index = {"meta": {"api-version": "1.4"}, "name": name, "project-status": status, "files": [file]}
            self.reply(index, "application/vnd.pypi.simple.v1+json")
        elif kind == "files" and name.endswith(".metadata"):
            name, version = name.split("-")[:2]
            self.reply(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "text/plain")
        elif kind == "osv":
            affected = {"package": {"name": "alpha", "ecosystem": "PyPI"}, "versions": ["1.0"]}
            events = [{"introduced": "0"}] + ([{"fixed": self.server.fixed}] if self.server.fixed else [])
            affected["ranges"] = [{"type": "ECOSYSTEM", "events": events}]
            record = {"id": name, "aliases": ["CVE-2020-7"], "modified": "2020-01-01T00:00:00Z"}
            self.reply(record | {"summary": "alpha runs what it is sent", "affected": [affected]})
        else:
            self.reply("", status=404)

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.server.asked |= {(query["package"]["name"], query["version"]) for query in queries}
        if self.server.instead is not None:
            self.reply(*self.server.instead)
            return
        hit = {"vulns": [{"id": "PYSEC-2020-7", "modified": "2020-01-01T00:00:00Z"}]}
        wanted = [self.server.vulnerable and query["package"]["name"] == "alpha" for query in queries]
        self.reply({"results": [hit if found else {} for found in wanted]})

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def pretended():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pretender)
    server.releases = {"alpha": ("1.0", False), "beta": ("2.0", False)}
    server.statuses, server.asked, server.vulnerable, server.fixed, server.instead = {}, set(), False, "1.1", None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment with nothing in it, to be copied: copying is quicker than creating."""
    venv.create(tmp_path_factory.mktemp("bare") / "venv", with_pip=False, symlinks=True)
    return next(tmp_path_factory.getbasetemp().glob("bare*/venv"))


@pytest.fixture(scope="module")
def main():
    """What .ci/audit.py does as a program, in this process: to start one for each test takes longer."""
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def audit(main, bare, pretended, tmp_path, monkeypatch, capsys):
    """Audits a project and an environment of pretended packages; gives exit status and output."""
    shutil.copytree(bare, tmp_path / "venv", symlinks=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    here = f"http://127.0.0.1:{pretended.server_port}"

    def run(
        *options,
        installed=("alpha 1.0",),
        needs="",
        lock=LOCK,
        ignore=None,
        index=f"{here}/simple",
        service=f"{here}/osv/",
    ):
        for name, version in (package.split() for package in (*installed, "own 0", "pip 1", "uv 1")):
            info = site / f"{name}-{version}.dist-info"
            info.mkdir()
            required = f"Requires-Dist: {needs}\n" if needs and name == "alpha" else ""
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
            (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "Own"\nrequires-python = ">=3.11"\n')
        (tmp_path / "requirements.lock").write_text(lock)
        if ignore is not None:
            (tmp_path / ".ci").mkdir()
            (tmp_path / ".ci" / "advisories.toml").write_text(ignore)
        command = ["audit.py", "--root", str(tmp_path), "--service-url", service]
        command += ["--python", str(tmp_path / "venv" / "bin" / "python"), *options]
        for name in [name for name in os.environ if name.startswith("UV_")]:
            monkeypatch.delenv(name)
        plain = {"UV_NO_CONFIG": "1", "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_HTTP_RETRIES": "0"}
        plain |= {"UV_DEFAULT_INDEX": index, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        for name, value in plain.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", command)
        try:
            status, said = main(), ""
        except SystemExit as end:  # as Python ends with a sentence
            status, said = 1, str(end.code)
        printed = capsys.readouterr()
        return status, printed.out + printed.err + said

    return run


def entry(**fields):
    return "[[ignore]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def test_a_sound_project_passes_and_all_its_pins_are_looked_up(audit, pretended):
    status, output = audit("--strict", ignore=(REPOSITORY / ".ci" / "advisories.toml").read_text())
    assert status == 0, output
    assert "no known vulnerability in 2 releases" in output
    assert "(1 of 2 pins are for this platform)" in output
    assert pretended.asked == {("alpha", "1.0"), ("beta", "2.0")}
    assert "FAIL" not in output
    assert "unknown" not in output


@pytest.mark.parametrize(
    ("fixed", "ignored", "status", "said"),
    [
        (
            "1.1",
            None,
            1,
            "alpha 1.0 is vulnerable: PYSEC-2020-7, CVE-2020-7, alpha runs what it is sent; fixed in 1.1;",
        ),
        (None, None, 1, "fixed in no release yet"),
        ("1.1", {"id": "PYSEC-2020-7", "reason": "alpha is sent nothing"}, 0, "passed over: alpha is sent nothing"),
        ("1.1", {"id": "CVE-2020-7", "reason": "by its other name"}, 0, "CVE-2020-7 is passed over"),
        ("1.1", {"id": "PYSEC-2020-7", "reason": "none mends it", "until_fixed": True}, 1, "alpha 1.0 is vulnerable"),
        (None, {"id": "PYSEC-2020-7", "reason": "none mends it", "until_fixed": True}, 0, "none mends it"),
        ("1.1", {"id": "PYSEC-2020-8", "reason": "another"}, 1, "`PYSEC-2020-8` does not match any vulnerability"),
        ("1.1", {"id": "PYSEC-2020-7"}, 1, "advisories.toml: {'id': 'PYSEC-2020-7'} needs an id and a reason"),
        ("1.1", {"id": "PYSEC-2020-7", "reason": ""}, 1, "needs an id and a reason"),
        ("1.1", {"id": "PYSEC-2020-7", "reason": "x", "untilfixed": True}, 1, "nothing else"),
    ],
)
def test_a_vulnerability_fails_unless_it_is_passed_over_for_a_reason(audit, pretended, fixed, ignored, status, said):
    pretended.vulnerable, pretended.fixed = True, fixed
    code, output = audit(ignore=entry(**ignored) if ignored else None)
    assert (code, said in output) == (status, True), output
    assert ("no known vulnerability" in output) == (status == 0)


@pytest.mark.parametrize(
    ("instead", "where", "status", "said"),
    [
        (None, {"service": CLOSED}, 0, f"the advisory service cannot be reached: {NOT_LOOKED_UP}"),
        (("busy", "text/plain", 503), {}, 0, f"the advisory service cannot be reached: {NOT_LOOKED_UP}"),
        (("<html>log in</html>", "text/html"), {}, 1, "`uv audit` gave no report"),
        (None, {"index": CLOSED}, 0, "the package registry cannot be reached: yanked releases were not looked for"),
    ],
)
def test_a_dead_network_is_told_and_fails_only_the_strict(audit, pretended, instead, where, status, said):
    pretended.vulnerable, pretended.instead = True, instead
    code, output = audit(**where)
    assert (code, said in output) == (status, True), output
    assert (NOT_LOOKED_UP in output) == (status == 0)
    assert "no known vulnerability" not in output
    assert "the environment is the lock" in output


def test_strict_fails_for_what_was_not_looked_up(audit):
    status, output = audit("--strict", service=CLOSED)
    assert status == 1
    assert NOT_LOOKED_UP in output
    assert "FAIL" not in output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"needs": "gamma>=3"}, "the environment is inconsistent: The package `alpha` requires `gamma>=3`"),
        ({"installed": ["alpha 1.2"]}, "it has alpha==1.0, installed is 1.2"),
        ({"installed": []}, "it has alpha==1.0, installed is none"),
        ({"lock": "alpha>=1.0\n"}, "alpha>=1.0 pins no exact release"),
        ({"lock": "alpha==1.*\n"}, "alpha==1.* pins no exact release"),
    ],
)
def test_an_environment_that_is_inconsistent_or_not_the_lock_fails_without_network(audit, change, said):
    status, output = audit(index=CLOSED, service=CLOSED, **change)
    assert (status, said in output) == (1, True), output
    assert output.count("FAIL") == 1


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        ({"beta": ("2.0", "broken build")}, 'beta==2.0 is yanked (reason: "broken build")'),
        ({"alpha": ("1.0", True)}, "alpha==1.0 is yanked"),
        ({"alpha": ("1.1", False)}, "the registry does not give what the lock pins"),
    ],
)
def test_a_yanked_or_vanished_release_fails(audit, pretended, releases, said):
    pretended.releases |= releases
    status, output = audit()
    assert (status, said in output) == (1, True), output
    assert "none yanked" not in output


@pytest.mark.parametrize(("state", "mark"), [("archived", "note "), ("quarantined", "FAIL ")])
def test_a_project_in_quarantine_fails_and_an_archived_one_is_noted(audit, pretended, state, mark):
    pretended.statuses["beta"] = state
    status, output = audit()
    assert status == (mark == "FAIL ")
    assert [line[:5] for line in output.splitlines() if f"the project beta is {state}" in line] == [mark]


def test_it_is_a_program():
    done = subprocess.run([sys.executable, str(REPOSITORY / ".ci" / "audit.py"), "--help"], capture_output=True)
    assert done.returncode == 0
    assert b"--strict" in done.stdout


def test_a_tool_of_ones_own_is_named_and_does_no_harm(audit):
    status, output = audit(installed=["alpha 1.0", "gamma 3.0"], index=CLOSED, service=CLOSED)
    assert status == 0
    assert "what the lock has not, and what is not audited: gamma" in output
