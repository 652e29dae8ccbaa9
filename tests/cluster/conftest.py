"""What the tests of `cluster/` share: its scripts and the helpers here as modules, and all overlays rendered."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parents[1] / "cluster"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def rendered():
    """Every kustomization that is meant to be applied, by its path: its objects."""
    pytest.importorskip("jsonpatch", reason="jsonpatch renders the kustomizations")
    from places import KUBERNETES
    from rendering import applied, build

    return {str(path.relative_to(KUBERNETES)): build(path) for path in applied(KUBERNETES)}


@pytest.fixture(scope="session")
def crds():
    """KubeRay's schemas by kind, as strict validators."""
    from places import CRDS

    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}")
    from schemas import crd_validators

    return crd_validators(CRDS)


@pytest.fixture(scope="session")
def core():
    """Checks an object of Kubernetes' own kinds; returns what is wrong with it."""
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate has Kubernetes' schemas")
    from schemas import core_problems

    return core_problems
