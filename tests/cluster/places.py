"""Where things lie: in the repository, and on the cluster."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
CRDS = ROOT.parent / "shared" / "reference" / "kuberay-1.7.0"
"""KubeRay's custom resource definitions; never part of the repository, so tests that need them may find none."""
MOUNT = "/mnt/condu"
"""The shared volume in every pod, or its own disk where storage is in a bucket."""
BUCKET = "s3://condu-ray"
SMALL = {"cpu-small", "bucket"}
"""Overlays of small nodes without GPUs."""


def in_bucket(overlay: str) -> bool:
    """Whether an overlay's storage is in a bucket."""
    return overlay.startswith("overlays/bucket")
