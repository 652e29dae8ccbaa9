"""The page "In a notebook" is true: its code of learning runs without Ray, on few images (runs: test_running.py).

One process is asked, for it takes seconds to begin: of the names that `condu_ray` offers too.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import condu_ray

NAMES = """
import sys, condu_ray
names = [name for name in dir(condu_ray) if name in condu_ray.__all__]
assert names == sorted(condu_ray.__all__), names
assert not {'torch', 'ray', 'mlflow', 'pandas', 'pydantic'} & sys.modules.keys()
from condu_ray import *
assert all(name in globals() for name in names)
assert not {'ray', 'mlflow', 'pandas'} & sys.modules.keys()
"""
PAGE = Path(condu_ray.__file__).parent / "face" / "README.md"


@pytest.mark.slow
def test_all_names_are_there_and_the_page_runs_without_ray(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    few = (
        "from functools import partial\nfrom condu_ray.face import learning\n"
        "learning.mini_mtil = partial(learning.mini_mtil, train_per_class=4, test_per_class=2)\n"
    )
    code = "\n".join(blocks[:2]).replace("steps=20", "steps=2").replace("steps=5", "steps=1") + (
        "\nimport sys"
        "\nassert all(0 <= value <= 100 for row in matrix for value in row), matrix"
        "\nassert matrix[0][0] != evaluate(backbone, tasks[0]).percent, 'nothing was learned'"
        "\nassert matrix[0][1] == evaluate(backbone, tasks[1]).percent, 'nobody has learned that yet'"
        "\nassert not {'ray', 'mlflow'} & sys.modules.keys()"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(PAGE.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", NAMES + few + code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ContinualMetrics" in done.stdout
