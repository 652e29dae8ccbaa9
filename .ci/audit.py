"""Audit the Python dependencies: the environment against the lock, the lock against registry and advisories.

uv is asked everything: `uv pip check` for consistency, `uv lock` of the pins for yanked or vanished releases, and
`uv audit`, which looks the pins up in the OSV database. Where the network ends, the audit says what it did not look up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

Findings = Iterator[tuple[str, str]]  # a mark (ok, note, unknown: could not be looked up, FAIL) and a sentence
SEEDS = {"pip", "uv"}  # they set the environment up, before there is a lock to install
IMPATIENT = {"UV_HTTP_RETRIES": "1", "UV_HTTP_CONNECT_TIMEOUT": "5"}  # seconds, not minutes, for a dead network
NO_NETWORK = r"sending request|request failed after|HTTP status|timed out|network was disabled|requires network access"


def run_uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv; what the caller's environment says of retries and timeouts wins."""
    command = [find_uv_bin(), "--color", "never", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=IMPATIENT | os.environ)


def read_lock(lock: Path) -> list[Requirement]:
    """Return the pins of a requirements file, without comments and hashes; ValueError names what pins no release."""
    pins = [Requirement(pin) for pin in re.findall(r"(?m)^[^\s#-].*?(?=\s*\\$|\s+#|$)", lock.read_text())]
    for pin in pins:
        if [part.operator for part in pin.specifier] != ["=="] or "*" in str(pin.specifier):
            raise ValueError(f"{lock}: {pin} pins no exact release; run `make lock`")
    return pins


def read_ignored(path: Path) -> list[dict[str, str | bool]]:
    """Return the `[[ignore]]` entries (id, reason, until_fixed); ValueError names an entry that is incomplete."""
    entries = tomllib.loads(path.read_text()).get("ignore", []) if path.exists() else []
    for entry in entries:
        if not {"id", "reason"} <= {key for key in entry if entry[key]} <= {"id", "reason", "until_fixed"}:
            raise ValueError(f"{path}: {entry} needs an id and a reason, and may have until_fixed; nothing else")
    return entries


def check_environment(pins: list[Requirement], python: str, own: str) -> Findings:
    """Compare what is installed with its own requirements and with the lock; needs no network."""
    listed, checked = (run_uv("pip", *verb, "--python", python) for verb in (["list", "--format", "json"], ["check"]))
    if listed.returncode:
        raise ValueError(f"the environment cannot be read: {listed.stderr.strip()}")
    installed = {canonicalize_name(package["name"]): package["version"] for package in json.loads(listed.stdout)}
    bad = "; ".join(re.findall(r"(?m)^The package .*", checked.stderr)) or checked.stderr.strip()
    yield ("FAIL", f"the environment is inconsistent: {bad}") if checked.returncode else ("ok", "all packages agree")
    wanted = {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}
    if own_tools := sorted(installed.keys() - wanted.keys() - SEEDS - {own}):
        yield "note", f"the environment has what the lock has not, and what is not audited: {', '.join(own_tools)}"
    strays = []
    for name, pin in wanted.items():
        if name not in installed or not pin.specifier.contains(installed[name], prereleases=True):
            strays.append(f"it has {name}{pin.specifier}, installed is {installed.get(name, 'none')}")
    yield from (("FAIL", f"the environment is not the lock: {stray} (`make clean setup`)") for stray in sorted(strays))
    if not strays:
        yield "ok", f"the environment is the lock ({len(wanted)} of {len(pins)} pins are for this platform)"


def failure(done: subprocess.CompletedProcess[str], unknown: str, otherwise: str) -> tuple[str, str]:
    """Tell a network that ends too early from bad news, by what uv says."""
    said = [line.strip() for line in done.stderr.splitlines() if re.match(r"error:|\s+cause:", line)]
    if re.search(NO_NETWORK, done.stderr, re.IGNORECASE):
        return "unknown", f"{unknown} ({'; '.join(dict.fromkeys([*said[:1], *said[-1:]]))})"
    return "FAIL", f"{otherwise}: {done.stderr.strip()}"


def check_releases(pins: list[Requirement], project: Path, python: str, requires_python: str) -> Findings:
    """Have uv lock a project of exactly these pins in the folder `project`, which names the yanked and the vanished."""
    head = f'[project]\nname = "locked"\nversion = "0"\nrequires-python = "{requires_python}"\n'
    (project / "pyproject.toml").write_text(f"{head}dependencies = {json.dumps([str(pin) for pin in pins])}\n")
    done = run_uv("lock", "--project", str(project), "--python", python)
    yanked = re.findall(r"`([^`]+)` is yanked(.*)", done.stderr)
    yield from (("FAIL", f"{release} is yanked{why}; `make lock` finds another") for release, why in yanked)
    if done.returncode:
        unknown = "the package registry cannot be reached: yanked releases were not looked for"
        yield failure(done, unknown, otherwise="the registry does not give what the lock pins")
    elif not yanked:
        yield "ok", f"the registry has all {len(pins)} pinned releases, none yanked"


def check_advisories(project: Path, ignored: list[dict], service: str | None) -> Findings:
    """Look the releases that `check_releases` locked up in the advisory service, passing over the ignored ones."""
    if not (project / "uv.lock").exists():
        yield "unknown", "without the registry's answer, known vulnerabilities were not looked up"
        return
    options = ["--output-format", "json", "--preview-features", "audit-command,json-output"]
    options += ["--service-url", service] if service else []
    for entry in ignored:
        options += ["--ignore-until-fixed" if entry.get("until_fixed") else "--ignore", entry["id"]]
        yield "note", f"{entry['id']} is passed over: {entry['reason']}"
    done = run_uv("audit", "--project", str(project), "--frozen", *options)
    yield from (("note", warning) for warning in re.findall(r"warning: (Ignored .*)", done.stderr))
    if not done.stdout.strip():
        unknown = "the advisory service cannot be reached: known vulnerabilities were not looked up"
        yield failure(done, unknown, otherwise="`uv audit` gave no report")
        return
    report = json.loads(done.stdout)
    for found in report["vulnerabilities"]:
        release = f"{found['dependency']['name']} {found['dependency']['version']}"
        what = ", ".join(filter(None, [found["id"], *found["aliases"], found["summary"]]))
        fixed = ", ".join(found["fix_versions"]) or "no release yet"
        yield "FAIL", f"{release} is vulnerable: {what}; fixed in {fixed}; {found['link']}"
    for name, status in ((entry["name"], entry["status"]) for entry in report["adverse_statuses"]):
        yield "FAIL" if status == "quarantined" else "note", f"the registry says that the project {name} is {status}"
    if not report["vulnerabilities"]:
        audited = report["summary"]["audited_packages"]
        yield "ok", f"no known vulnerability in {audited} releases, but for advisories passed over: {len(ignored)}"


def main() -> int:
    """Print the findings; return 1 if one is FAIL, or unknown under --strict, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(), help="folder of requirements.lock and pyproject.toml")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment to audit")
    parser.add_argument("--service-url", help="another OSV service than uv's own, with a slash at its end")
    parser.add_argument("--strict", action="store_true", help="fail, too, for what could not be looked up")
    options = parser.parse_args()
    root, python, marks = options.root, os.path.abspath(options.python), set()
    try:
        about = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        pins, ignored = read_lock(root / "requirements.lock"), read_ignored(root / ".ci" / "advisories.toml")
        with tempfile.TemporaryDirectory() as folder:
            environment = check_environment(pins, python, canonicalize_name(about["name"]))
            releases = check_releases(pins, Path(folder), python, about["requires-python"])
            advisories = check_advisories(Path(folder), ignored, options.service_url)
            for mark, text in (*environment, *releases, *advisories):
                marks.add(mark)
                print(f"{mark:8} {text}")
    except (OSError, ValueError) as error:
        sys.exit(f"FAIL     {error}")
    print("Never audited: Python, pip and uv themselves, and the libraries that wheels carry inside them.")
    return int("FAIL" in marks or (options.strict and "unknown" in marks))


if __name__ == "__main__":
    sys.exit(main())
