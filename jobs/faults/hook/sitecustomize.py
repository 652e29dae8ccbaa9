"""Loaded by every Python process that has this folder on its PYTHONPATH, Ray's workers among them."""

import importlib
import os

if "CONDU_RAY_KILLS" in os.environ:
    importlib.import_module("kill_points").install(os.environ["CONDU_RAY_KILLS"])
