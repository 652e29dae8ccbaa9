"""A shard's process takes its range and a few pieces, not its range twice: under a limit that is enforced."""

import subprocess
import sys

import pytest

from condu_ray.merging.pieces import PIECE
from condu_ray.merging.streamed import unify_file
from jobs.bench.unify_disk import make_delta

PARAMS = 22_000_000

WORK = """
import resource, sys
from pathlib import Path
import torch
from condu_ray.merging.pieces import unify_piece
from condu_ray.merging.shards import Here, ShardedDelta
torch.set_num_threads(1)
few = torch.zeros(8, 1 << 19)
unify_piece((1.0,), (few, torch.zeros(1, 1 << 19, dtype=torch.uint8)), few)  # the compiled loops are loaded
own = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
folder, room = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (own + room, own + room))
state = ShardedDelta.opened(Here(1), folder / "before", "0")
for task in ("second", "third"):  # from the file, and on from what it holds
    state = state.unify(task, folder / "delta", state=task, file=folder / task)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts what is mapped on Linux alone")
def test_a_shard_needs_its_range_and_a_few_pieces(tmp_path):
    make_delta(PARAMS, 0, tmp_path / "delta")
    unify_file(None, tmp_path / "delta", tmp_path / "before", task="first")
    held, piece = PARAMS * (4 + 3 / 8), PIECE * (4 + 3 / 8)
    room = held + 4 * piece
    assert 2 * held > room + piece  # twice its range would not do
    work = [sys.executable, "-c", WORK, str(tmp_path), str(int(room))]
    ended = subprocess.run(work, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
