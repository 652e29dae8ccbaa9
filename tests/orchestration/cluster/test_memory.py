"""Memory that can still be had: the machine's, or less in a container; and memory that is kept."""

import platform
import subprocess
import sys

import pytest

from condu_ray.orchestration.cluster import memory
from condu_ray.orchestration.cluster.memory import free_memory

GB = 10**6 * 1024


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    monkeypatch.delenv("RAY_memory_usage_threshold", raising=False)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


MACHINE = {
    "proc/meminfo": "MemTotal: 100000000 kB\nMemFree: 1000000 kB\nMemAvailable: 60000000 kB\nHugePages_Total: 0\n"
}
STAT = "anon 5\n{0}inactive_file {1}\n{0}active_file {1}\n"
FIRST = {"memory.limit_in_bytes": 20 * GB, "memory.usage_in_bytes": 12 * GB, "memory.stat": STAT.format("total_", GB)}
SECOND = {"memory.max": 20 * GB, "memory.current": 12 * GB, "memory.stat": STAT.format("", GB)}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MACHINE, 55),
        (MACHINE | {f"sys/fs/cgroup/memory/{name}": str(value) for name, value in FIRST.items()}, 9),
        (MACHINE | {f"sys/fs/cgroup/{name}": str(value) for name, value in SECOND.items()}, 9),
        (
            MACHINE | {f"sys/fs/cgroup/{name}": str(value) for name, value in (SECOND | {"memory.max": "max"}).items()},
            55,
        ),
        ({}, 0),
        ({"proc/meminfo": "nothing\n"}, 0),
    ],
)
def test_what_is_free(system, files, free):
    system(files)
    assert free_memory() == free * GB


def test_the_share_that_ray_was_told(system, monkeypatch):
    system(MACHINE)
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.5")
    assert free_memory() == 10 * GB


def test_this_machine_says_something():
    assert free_memory() > 0


CODE = """
import ctypes, resource
from condu_ray.orchestration.cluster.memory import keep_freed
ctypes.CDLL(None).mallopt(-3, 1 << 16)  # every larger block is mapped anew, whatever the heap looks like
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [b"1" * (1 << 22) for _ in range(3)]  # by malloc, as torch has its tensors
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
plain, kept = faults(), keep_freed()
faults()
print(plain, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_what_comes_next():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    plain, kept, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < 100 < int(plain)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed()
