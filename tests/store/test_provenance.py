"""What is said of how something was made: the revision is of the repository that has the package, and of no other."""

import subprocess
from pathlib import Path

from condu_ray.store.provenance import _revision

GIT = ("git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org")


def test_the_revision_is_of_the_repository_that_has_the_package(tmp_path):
    def git(*words: str) -> str:
        return subprocess.run([*GIT, "-C", tmp_path, *words], capture_output=True, text=True, check=True).stdout.strip()

    def written(path: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text("code")
        return file

    tracked = written("package/store/provenance.py")
    assert _revision(tracked) == "unknown"
    git("init")
    git("add", ".")
    git("commit", "--message", "theirs")
    assert _revision(tracked) == git("rev-parse", "HEAD")
    installed = written(".venv/lib/site-packages/condu_ray/store/provenance.py")
    assert _revision(installed) == "unknown"  # not that of the repository which the environment lies in
