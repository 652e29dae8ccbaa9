"""Replay what `cluster/Dockerfile` installs in a folder, without Docker, and run the image's commands there.

    python cluster/replay_image.py            # some minutes and 7 GB in a temporary folder, which is removed afterwards

The steps are read from the Dockerfile, so that they cannot differ from it: ARG, ENV, WORKDIR, COPY (as `.dockerignore`
lets it) and RUN, stage by stage, with the image's absolute paths moved under the folder. Skipped, and said so, are the
steps that change the system (users, the interpreter's own library): the machine is not the image. What stays untried:
the base image itself, the user's rights, HEALTHCHECK.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dockerfile import ROOT, DockerfileError, Step, chain, context_files, environment, read

MOVED = ("/opt/", "/mnt/")
"""Beginnings of the image's paths that lie under the folder in a replay."""
SYSTEM = re.compile(r"(groupadd|useradd|install|chown|apt-get|python -m compileall)\b")
"""Commands of RUN steps that change the system instead of the environment."""
OURS = re.compile(r"(PIP|UV|SSL_CERT)_|REQUESTS_CA_BUNDLE$|(HTTPS?|ALL|NO)_PROXY$", re.IGNORECASE)
"""Variables of this machine that say how packages are fetched here; all others are left out, as in an image."""
SMOKE = (
    "python -c \"import condu_ray; assert '/site-packages/' in condu_ray.__file__, condu_ray.__file__\"",
    "python jobs/run_mtil.py --method list",
    "python cluster/with_room.py --help",
    "condu-ray serve --help",
    "ray --version",
    "mlflow --version",
)


class Replay:
    """Carries out steps below a folder.

    Args:
        folder: where the image's files go.
        python: folder of the interpreter that stands for the base image's.
    """

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.workdir = folder, folder
        fetching = {name: value for name, value in os.environ.items() if OURS.match(name)}
        self.env = fetching | {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(Path.home()), "LANG": "C.UTF-8"}

    def moved(self, text: str) -> str:
        """Returns a text with the image's paths below the folder."""
        for start in MOVED:
            text = re.sub(rf"(?<![\w/.]){start}", f"{self.folder}{start}", text)
        return text

    def run(self, step: Step) -> None:
        """Carries out one step; a failing command raises CalledProcessError."""
        if step.word in {"ARG", "ENV"}:
            found = environment(step.rest, self.env)
            found.pop("UV_CACHE_DIR", None)  # it names the builder's cache mount; here uv has its own place
            self.env |= {name: self.moved(value) for name, value in found.items()}
        elif step.word == "WORKDIR":
            self.workdir = Path(self.moved(step.rest))
            self.workdir.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            self._copy(step)
        elif step.word == "RUN" and SYSTEM.match(step.rest):
            print(f"  skipped, it changes the system: {step.rest}", flush=True)
        elif step.word == "RUN":
            print(f"  {step.rest}", flush=True)
            self.call(re.sub(r"^(--\w+=\S+\s+)*", "", self.moved(step.rest)))

    def forget(self, taken: set[str]) -> None:
        """Begins a stage on its base image: of what earlier stages made, only what is copied out of them remains."""
        for start in MOVED:
            for path in Path(self.moved(start)).glob("*"):
                if f"{start}{path.name}" not in taken:
                    shutil.rmtree(path)

    def call(self, command: str) -> None:
        """Runs a shell command in the working folder, with the image's environment and no more."""
        subprocess.run(["/bin/sh", "-ec", command], cwd=self.workdir, env=self.env, check=True)

    def _copy(self, step: Step) -> None:
        *sources, target = step.rest.split()
        for source in sources:
            if "from" in step.flags:
                if not Path(self.moved(source)).exists():
                    raise DockerfileError(f"line {step.line}: {source} was made by no stage")
                continue
            for path in context_files(source):
                inside = path.relative_to(source) if (ROOT / source).is_dir() else Path(path.name)
                place = Path(self.moved(target))
                if (ROOT / source).is_dir() or target.endswith("/"):
                    place = place / inside
                place = place if place.is_absolute() else self.workdir / place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, place)


def replay(target: str, folder: Path, smoke: Sequence[str]) -> None:
    """Builds a target below a folder and runs the smoke commands there.

    Raises:
        DockerfileError: the Dockerfile cannot be replayed.
        CalledProcessError: a step or a command failed.
    """
    before, stages = read()
    wanted = re.search(r"python:(\d+\.\d+)", before.get("PYTHON_IMAGE", ""))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted and wanted[1] != here:
        raise DockerfileError(f"the image has Python {wanted[1]}, this is {here}: run it with that one")
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    begin, built = time.perf_counter(), Replay(folder, folder / "python" / "bin")
    needed = chain(stages, target)
    taken = {step.rest.split()[0] for stage in needed for step in stage.steps if "from" in step.flags}
    for stage in needed:
        print(f"stage {stage.name} from {stage.base}", flush=True)
        if stage.base not in {other.name for other in needed}:
            built.forget(taken)
        for step in stage.steps:
            built.run(step)
    size = sum(path.stat().st_size for path in (folder / "opt").rglob("*") if path.is_file() and not path.is_symlink())
    print(f"built in {time.perf_counter() - begin:.0f} s, {size / 2**30:.1f} GiB", flush=True)
    if not list((folder / "opt").glob("**/torch/__pycache__/*.pyc")):
        raise DockerfileError("torch has no compiled bytecode: UV_COMPILE_BYTECODE is not in force")
    for command in smoke:
        print(f"$ {command}", flush=True)
        begin = time.perf_counter()
        built.call(command)
        print(f"  {time.perf_counter() - begin:.1f} s", flush=True)


def main(given: Sequence[str]) -> int:
    """Returns 0 when every step and command succeeded, else 1."""
    parser = argparse.ArgumentParser(prog="replay_image.py", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--target", default="cpu", help="target of the Dockerfile")
    parser.add_argument("--folder", type=Path, help="where to build; kept. Default: a temporary one, removed")
    parser.add_argument("--smoke", action="append", help=f"command to run instead of {len(SMOKE)} default ones")
    found = parser.parse_args(given)
    folder = found.folder or Path(tempfile.mkdtemp(prefix="replay-image-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replay(found.target, folder.resolve(), found.smoke or SMOKE)
    except (DockerfileError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if found.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1:]))
