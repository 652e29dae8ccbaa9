import shutil
import subprocess

import pytest
import yaml
from places import KUBERNETES
from rendering import RenderError, applied, build

KUBECTL = shutil.which("kubectl")


pytestmark = pytest.mark.usefixtures("rendered")  # skips where nothing can be rendered


def by_name(objects):
    return {(thing["kind"], thing["metadata"]["name"]): thing for thing in objects}


@pytest.mark.skipif(KUBECTL is None, reason="no kubectl to compare with")
@pytest.mark.parametrize("folder", applied(KUBERNETES), ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_our_rendering_is_kubectls(folder):
    command = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True)
    if command.returncode and "unknown command" in command.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert command.returncode == 0, command.stderr
    assert by_name(build(folder)) == by_name(yaml.safe_load_all(command.stdout))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resources": ["a.yaml"], "namePrefix": "x-"}, "namePrefix is not rendered"),
        ({"resources": ["a.yaml"], "patches": [{"target": {"kind": "A"}, "patch": "{spec: {}}"}]}, "only JSON 6902"),
        ({"resources": ["a.yaml"], "kind": "Component"}, "a Component where a Kustomization"),
        (
            {"resources": ["a.yaml"], "replacements": [{"source": {"kind": "B", "fieldPath": "spec"}, "targets": []}]},
            "0 objects are the source",
        ),
    ],
)
def test_what_is_not_rendered_is_refused(tmp_path, settings, words):
    (tmp_path / "a.yaml").write_text("{apiVersion: v1, kind: A, metadata: {name: a}}")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization"} | settings))
    with pytest.raises(RenderError, match=words):
        build(tmp_path)


def test_every_file_is_part_of_something_that_is_applied():
    used = set()

    def walk(folder):
        used.add(folder / "kustomization.yaml")
        settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
        patches = [entry["path"] for entry in settings.get("patches", []) if "path" in entry]
        for name in [*settings.get("resources", []), *settings.get("components", []), *patches]:
            place = (folder / name).resolve()
            walk(place) if place.is_dir() else used.add(place)

    for folder in applied(KUBERNETES):
        walk(folder.resolve())
    assert {path for path in KUBERNETES.resolve().rglob("*") if path.is_file()} == used
