import copy

import pytest
from consistency import pod_templates, problems
from operators import name_of
from places import KUBERNETES, in_bucket
from rendering import applied

OVERLAYS = [str(path.relative_to(KUBERNETES)) for path in applied(KUBERNETES)]
CLUSTERS = [name for name in OVERLAYS if not name.endswith("services")]
RAY = {"RayCluster", "RayJob", "RayService"}


def together(rendered, overlay):
    """An overlay's objects with the services that they rely on."""
    objects = rendered[overlay]
    services = rendered["overlays/bucket/services" if in_bucket(overlay) else "services"]
    return objects if overlay.endswith("services") else [*services, *objects]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_agree_with_each_other_and_with_the_operators(rendered, overlay):
    assert problems(together(rendered, overlay)) == []


@pytest.mark.parametrize("overlay", CLUSTERS)
def test_ray_objects_satisfy_kuberays_schema(rendered, crds, overlay):
    assert [crds[thing["kind"]].problems(thing) for thing in rendered[overlay]] == [[]]


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith("services")])
def test_services_satisfy_kubernetes_schemas(rendered, core, overlay):
    assert {thing["metadata"]["name"]: core(thing) for thing in rendered[overlay] if core(thing)} == {}


def test_pod_templates_of_ray_satisfy_kubernetes_schema(rendered, core):
    """KubeRay's schema leaves parts of a pod open that Kubernetes does not."""
    for overlay in CLUSTERS:
        for thing in rendered[overlay]:
            for place, template in pod_templates(thing):
                pod = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": template.get("metadata", {}),
                    "spec": template["spec"],
                }
                assert core(pod) == [], place


CLUSTER, JOB, QUEUED, SERVED = (
    ("gpu/cluster", "RayCluster/condu-ray"),
    ("gpu/run", "RayJob/run-mtil"),
    ("kueue/run", "RayJob/run-mtil"),
    ("gpu/serve", "RayService/serve-mtil"),
)
HEAD, GPU = "/spec/headGroupSpec/template/spec", "/spec/workerGroupSpecs/1"
INNER = "/spec/rayClusterSpec"
POD = "/spec/template/spec"
FIRST = f"{POD}/containers/0"


def service(name):
    return ("services", name)


SCHEMA_MUTATIONS = [
    # where, operation, path, value, words of the problem
    (CLUSTER, "add", "/spec/headGroupSpecs", {}, "headGroupSpecs"),
    (CLUSTER, "add", f"{GPU}/minReplica", 1, "minReplica"),
    (CLUSTER, "replace", f"{GPU}/minReplicas", "none", "integer"),
    (CLUSTER, "replace", "/spec/headGroupSpec/rayStartParams/num-cpus", 0, "string"),
    (CLUSTER, "replace", "/spec/authOptions/mode", "tokens", "tokens"),
    (CLUSTER, "replace", "/spec/autoscalerOptions/version", "v3", "v3"),
    (CLUSTER, "remove", "/spec/headGroupSpec", None, "headGroupSpec"),
    (CLUSTER, "replace", "/spec/enableInTreeAutoscaling", "yes", "boolean"),
    (CLUSTER, "add", f"{HEAD}/tolerations", {"key": "a"}, "array"),
    (CLUSTER, "remove", f"{HEAD}/containers", None, "containers"),
    (CLUSTER, "replace", "/apiVersion", "ray.io/v1alpha1", "apiVersion"),
    (JOB, "add", "/spec/ttlSecondAfterFinished", 1, "ttlSecondAfterFinished"),
    (JOB, "replace", "/spec/backoffLimit", "3", "integer"),
    (JOB, "add", f"{INNER}/rayversion", "2", "rayversion"),
    (JOB, "replace", f"{INNER}{HEAD[5:]}/volumes/0/persistentVolumeClaim", {"claim": "x"}, "claim"),
    (SERVED, "add", "/spec/serveConfig", "", "serveConfig"),
    (SERVED, "replace", "/spec/serveConfigV2", {"applications": []}, "string"),
    (SERVED, "replace", "/spec/excludeHeadPodFromServeSvc", "yes", "boolean"),
    (service("Deployment/mlflow"), "add", "/spec/replica", 1, "replica"),
    (service("Deployment/mlflow"), "replace", "/spec/replicas", "one", "integer"),
    (service("Deployment/mlflow"), "remove", "/spec/selector", None, "selector"),
    (service("NetworkPolicy/mlflow"), "add", "/spec/ingres", [], "ingres"),
    (service("StatefulSet/redis"), "add", f"{FIRST}/volumeMount", [], "volumeMount"),
    (service("PersistentVolumeClaim/condu-storage"), "replace", "/spec/accessModes", "ReadWriteMany", "array"),
    (service("PriorityClass/condu-ray-head"), "replace", "/value", "high", "integer"),
    (service("Service/mlflow"), "replace", "/spec/ports/0/port", "http", "integer"),
]

PEER = "/spec/ingress/0/from/0/podSelector"
SECRET = f"{FIRST}/env/0/valueFrom/secretKeyRef"
AGREEMENT_MUTATIONS = [
    (service("Service/mlflow"), "replace", "/spec/ports/0/targetPort", "https", "target port https"),
    (service("Deployment/mlflow"), "replace", f"{FIRST}/livenessProbe/httpGet/port", "ui", "port ui"),
    (service("Deployment/mlflow"), "replace", f"{POD}/volumes/0/persistentVolumeClaim/claimName", "m", "no claim m"),
    (service("Deployment/mlflow"), "replace", f"{FIRST}/volumeMounts/0/name", "d", "no volume d"),
    (service("Deployment/mlflow"), "remove", f"{FIRST}/resources/limits", None, "memory limit"),
    (service("Deployment/mlflow"), "remove", f"{FIRST}/resources/requests/cpu", None, "no cpu or memory"),
    (service("Deployment/mlflow"), "remove", f"{POD}/securityContext/runAsNonRoot", None, "root"),
    (service("Deployment/mlflow"), "remove", f"{POD}/securityContext/seccompProfile", None, "seccomp"),
    (service("Deployment/mlflow"), "add", "/metadata/namespace", "default", "namespace default"),
    (service("StatefulSet/redis"), "replace", f"{FIRST}/env/0", {"name": "REDIS_PASSWORD", "value": "x"}, "inline"),
    (service("StatefulSet/redis"), "replace", f"{SECRET}/name", "redis", "no secret redis"),
    (service("StatefulSet/redis"), "replace", f"{SECRET}/key", "pass", "key pass"),
    (service("StatefulSet/redis"), "replace", f"{FIRST}/args/0", "exec x --requirepass hunter2", "in the command"),
    (service("PersistentVolumeClaim/condu-storage"), "replace", "/metadata/name", "s", "no claim condu-storage"),
    (service("PriorityClass/condu-ray-worker"), "replace", "/metadata/name", "low", "no priority class"),
    (service("Service/redis"), "replace", "/kind", "Secret", "does not belong"),
    (service("Service/redis"), "replace", "/metadata/name", "mlflow", "twice"),
    (service("NetworkPolicy/mlflow"), "replace", "/spec/ingress/0/ports/0/port", 5001, "opens port 5001"),
    (service("NetworkPolicy/redis"), "replace", "/spec/podSelector/matchLabels", {"a": "b"}, "selects no pod"),
    (service("NetworkPolicy/mlflow"), "replace", PEER, {"matchLabels": {"ray.io/node-type": "haed"}}, "haed"),
    (CLUSTER, "replace", "/spec/gcsFaultToleranceOptions/redisAddress", "redis:6380", "redis:6380"),
    (CLUSTER, "replace", "/spec/gcsFaultToleranceOptions/redisPassword", {"value": "x"}, "inline"),
    (CLUSTER, "replace", f"{HEAD}/containers/0/env/0/value", "http://mlfow:5000", "mlfow"),
    (CLUSTER, "replace", f"{HEAD}/containers/0/env/0/value", "http://u:p@mlflow:5000", "password inline"),
    (CLUSTER, "add", f"{HEAD}/containers/0/env/-", {"name": "RAY_AUTH_TOKEN", "value": "x"}, "inline"),
    (CLUSTER, "add", f"{HEAD}/containers/0/env/-", {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}, "operator's"),
    (CLUSTER, "add", "/spec/networkPolicy", {}, "feature gate"),
    (CLUSTER, "add", f"{HEAD}/restartPolicy", "Always", "restartPolicy"),
    (CLUSTER, "replace", "/spec/headGroupSpec/rayStartParams/num-cpus", "4", "takes work"),
    (CLUSTER, "replace", "/spec/autoscalerOptions/version", "v1", "autoscaler v2"),
    (CLUSTER, "replace", f"{GPU}/replicas", 5, "5 <= 4"),
    (CLUSTER, "replace", f"{GPU}/template/spec/nodeSelector", {"condu-ray/nodes": "gpus"}, "gpus"),
    (CLUSTER, "replace", f"{GPU}/template/spec/priorityClassName", "low", "priority class low"),
    (CLUSTER, "replace", "/spec/rayVersion", "2.51.0", "token"),
    (CLUSTER, "remove", "/spec/authOptions", None, "no token"),
    (CLUSTER, "remove", f"{GPU}/template/spec/containers/0/securityContext", None, "privileges"),
    (CLUSTER, "remove", "/spec/headGroupSpec/template/metadata/annotations", None, "move its head"),
    (CLUSTER, "remove", f"{GPU}/template/spec/automountServiceAccountToken", None, "has a token"),
    (service("NetworkPolicy/no-metadata"), "remove", "/spec/egress/0/to/0/ipBlock/except", None, "metadata server"),
    (service("NetworkPolicy/no-metadata"), "replace", "/spec/podSelector", {"matchLabels": {"a": "b"}}, "every pod"),
    (JOB, "replace", "/spec/shutdownAfterJobFinishes", False, "would stay"),
    (JOB, "remove", "/spec/activeDeadlineSeconds", None, "no deadline"),
    (JOB, "replace", "/spec/entrypoint", "python jobs/run_mtil.py", "--run"),
    (JOB, "add", "/spec/clusterSelector", {"ray.io/cluster": "condu-ray"}, "no second attempt"),
    (JOB, "replace", "/spec/submitterPodTemplate/spec/restartPolicy", "Always", "restartPolicy"),
    (JOB, "replace", "/metadata/name", "x" * 48, "longer than 47"),
    (
        SERVED,
        "remove",
        "/spec/rayClusterConfig/workerGroupSpecs/1/template/spec/containers/0/ports",
        None,
        "port serve",
    ),
    (SERVED, "add", "/spec/upgradeStrategy", {"type": "NewClusterWithIncrementalUpgrade"}, "feature gate"),
    (SERVED, "replace", "/metadata/name", "x" * 48, "longer than 47"),
    (service("NetworkPolicy/ray-serve"), "replace", "/spec/ingress/0/ports/0/port", 8001, "opens port 8001"),
    (QUEUED, "replace", f"{INNER}/enableInTreeAutoscaling", True, "Kueue"),
    (QUEUED, "replace", f"{INNER}/workerGroupSpecs/0/groupName", "head", "Kueue"),
]


def mutated(rendered, where, operation, path, value):
    """The objects of an overlay with one of them broken, and that one. Services are seen with a cluster beside them."""
    import jsonpatch

    overlay, name = where
    beside = "gpu/cluster" if overlay == "services" else overlay
    objects = copy.deepcopy(together(rendered, f"overlays/{beside}"))
    step = {"op": operation, "path": path} | ({} if operation == "remove" else {"value": value})
    found = next(n for n, thing in enumerate(objects) if name_of(thing) == name)
    objects[found] = jsonpatch.apply_patch(objects[found], [step])
    return objects, objects[found]


@pytest.mark.parametrize(("where", "operation", "path", "value", "words"), SCHEMA_MUTATIONS)
def test_a_broken_object_fails_its_schema(request, rendered, where, operation, path, value, words):
    _, broken = mutated(rendered, where, operation, path, value)
    kind = broken["kind"]
    check = request.getfixturevalue("crds")[kind].problems if kind in RAY else request.getfixturevalue("core")
    assert words in " ".join(check(broken))


@pytest.mark.parametrize(("where", "operation", "path", "value", "words"), AGREEMENT_MUTATIONS)
def test_broken_agreement_is_found(rendered, where, operation, path, value, words):
    objects, _ = mutated(rendered, where, operation, path, value)
    assert words in " ".join(problems(objects))


def test_jobs_differ_only_in_what_they_run(rendered):
    run, sweep = (copy.deepcopy(rendered[f"overlays/gpu/{name}"][0]) for name in ("run", "sweep"))
    for thing in (run, sweep):
        for field in ("entrypoint", "activeDeadlineSeconds"):
            thing["spec"].pop(field)
        thing["metadata"].pop("name")
    assert run == sweep


def test_spot_differs_from_gpu_only_where_spot_nodes_do(rendered):
    import jsonpatch

    plain, spot = (rendered[f"overlays/{name}/run"][0] for name in ("gpu", "gpu-spot"))
    changed = {step["path"] for step in jsonpatch.make_patch(plain, spot).patch}
    group = "/spec/rayClusterSpec/workerGroupSpecs/1/template/spec"
    assert {path for path in changed if not path.startswith(group)} == {
        "/spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/env/2"
    }
    pod = spot["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]
    drain = next(e for e in pod["containers"][0]["env"] if e["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
    assert float(drain["value"]) < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", [name for name in CLUSTERS if "/cluster" in name])
def test_a_standing_cluster_costs_no_worker_until_it_is_asked(rendered, overlay):
    (cluster,) = rendered[overlay]
    assert [(group["replicas"], group["minReplicas"]) for group in cluster["spec"]["workerGroupSpecs"]] == [
        (0, 0) for _ in cluster["spec"]["workerGroupSpecs"]
    ]
    assert cluster["spec"]["enableInTreeAutoscaling"]
    assert all(group["maxReplicas"] > 0 for group in cluster["spec"]["workerGroupSpecs"])
