"""What a command costs, with all that it starts."""

import subprocess
import sys

import pytest

from jobs.bench.processes import cost

BUSY = "import time; end = time.process_time() + {0}\nwhile time.process_time() < end: pass"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True); "


def test_children_count():
    found = cost([sys.executable, "-c", PARENT + BUSY.format(0.4), BUSY.format(0.6)])
    assert found.processes == 2
    assert 0.5 < found.cpu <= found.wall * 2 + 1
    assert "CPU s in 2 processes" in str(found)


def test_a_command_that_fails_has_no_cost():
    with pytest.raises(subprocess.CalledProcessError):
        cost([sys.executable, "-c", "raise SystemExit(3)"])
