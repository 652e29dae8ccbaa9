"""What an evaluator does: it has a backbone whose weights it swaps, and measures one thing a call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from condu_ray.benchmark import Task, load_task
from condu_ray.benchmark.content import Contents, require_test, require_train
from condu_ray.benchmark.label_space import label_space
from condu_ray.benchmark.tasks import Hashes, take_hashes
from condu_ray.config import Experiment, content_hash
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.prototype_pass import Chunk, ChunkEncoder
from condu_ray.learn.prototype_store import prototype_key
from condu_ray.learn.routing import Routing, load_routing, prototypes_of
from condu_ray.methods import Method, ModelState, get
from condu_ray.methods.session import load_session
from condu_ray.orchestration.cluster.memory import keep_freed
from condu_ray.orchestration.cluster.sight import require_sight, require_versions
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.fidelity import Fidelity
from condu_ray.plan.measurement import Encoding, Measurement, Wanted, by_own_expert, judged, routed
from condu_ray.store.ledger import ROOT, Entry
from condu_ray.store.location import Place
from condu_ray.store.measurements import Accuracy
from condu_ray.vlm.model import BackboneSpec, load_backbone

STATES = 2
"""Sessions' states that an evaluator keeps loaded."""
PROTOTYPES = 1024
"""Tasks' prototypes that an evaluator keeps loaded: those of a task of 100 classes are some 0.2 MB."""


class Measurer:
    """Holds the backbone for the whole run.

    Args:
        backbone: the backbone.
        config: settings of the run, or those that all trials of the sweep share; an absolute storage folder.
        precision: `fp32` or `bf16`.
        folders: folder of each task.
        probes: of each task that is measured and never learned.
        cuda: whether to compute on the GPU that Ray gave.
        held_out: folder of each task with the images that `validation_share` holds out as its test images.
        hashes: of the tasks' files, so that they are not hashed anew.
        contents: what the tasks' files have to hold still.
        versions: the driver's, of what computes; empty: not to be compared.

    Raises:
        SightError: this node does not see storage.
        VersionsError: it has other versions.
    """

    def __init__(
        self,
        backbone: BackboneSpec,
        config: Experiment,
        precision: str,
        folders: Mapping[str, Place],
        cuda: bool,
        held_out: Mapping[str, Place] | None = None,
        probes: Mapping[str, Place] | None = None,
        hashes: Hashes = MappingProxyType({}),
        contents: Contents = MappingProxyType({}),
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if not cuda:
            keep_freed()
        require_versions(versions)
        require_sight(backbone.staged)
        take_hashes(hashes)
        torch.set_num_threads(config.training.threads)
        self._evaluator = Evaluator(
            load_backbone(backbone),
            batch_size=config.evaluation.batch_size,
            max_images=config.evaluation.max_images,
            precision=precision,
            device="cuda" if cuda else "cpu",
            storage=config.storage,
        )
        self._tasks = {name: load_task(folder) for name, folder in folders.items()}
        self._held_out = {name: load_task(folder) for name, folder in (held_out or {}).items()}
        self._temperatures: dict[tuple[str, str], float] = {}
        self._fidelity = Fidelity()
        self._probes = {name: load_task(folder) for name, folder in (probes or {}).items()}
        self._states: OrderedDict[str, ModelState] = OrderedDict()
        self._routings: OrderedDict[str, Routing] = OrderedDict()
        self._prototypes: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()
        self._run, self._contents = config.run_name, contents
        telemetry.restarted("evaluator", self._run)
        telemetry.gauge("condu_evaluators_active", 1, run=self._run)

    def _state(self, method: Method, entry: Entry) -> ModelState:
        if entry.state == ROOT:
            return ModelState()
        key = f"{method.config.run_name}/{method.name}/{entry.state}"
        if key not in self._states:
            state, device = load_session(method.config.run_folder, method, entry), self._evaluator.features.device
            if device.type != "cpu" and hasattr(state.model, "to"):  # u and the bits: experts are made there
                state = replace(state, model=state.model.to(device))
            self._states[key] = state
            while len(self._states) > STATES:
                self._states.popitem(last=False)
        return self._states[key]

    def encode(self, folder: str, chunk: Chunk) -> bytes:
        """Returns a chunk's part of what prototypes are made of (learn/prototype_pass.py), as a safetensors file.

        Args:
            folder: of the task.
            chunk: of its training images, or its prompts.
        """
        features = self._evaluator.features
        features.place(PRETRAINED)
        return save(ChunkEncoder(features.backbone, features.device)(load_task(folder), chunk))

    def measure(self, wanted: Wanted) -> Accuracy:
        """Measures one state on one task, or makes features that measuring leaves, which are no accuracy.

        Args:
            wanted: what to measure.

        Returns:
            The accuracy; for a learned task that is known and has an expert of its own, also how well this is
            calibrated, and of a method that merges, how well it is reconstructed.

        Raises:
            ChangedError: the images are not those that the measurement's key says.
        """
        with telemetry.busy("condu_evaluator_busy_seconds_total", run=self._run):
            self._require(wanted)
            found = self._measure(wanted) if isinstance(wanted, Measurement) else self._encoded(wanted.task)
            self._require(wanted)  # they were read meanwhile
            return found

    def _encoded(self, task: str) -> Accuracy:
        features = self._evaluator.features.image(PRETRAINED, self._tasks[task], precision="fp32")
        return Accuracy(0, len(features), 0.0)

    def _require(self, wanted: Wanted) -> None:
        require_test((self._tasks | self._probes)[wanted.task], self._contents)
        if isinstance(wanted, Encoding):
            return
        method = get(wanted.method, wanted.config)
        for name in self._state(method, wanted.entry).tasks if routed(method, wanted.seen, wanted.protocol) else ():
            require_train(self._tasks[name], self._contents)

    def _measure(self, wanted: Measurement) -> Accuracy:
        method, task = get(wanted.method, wanted.config), (self._tasks | self._probes)[wanted.task]
        state = self._state(method, wanted.entry)
        # In the asker's order: of a class that several tasks have and none has learned, the first one's prompt counts.
        tasks = [self._tasks[name] for name in wanted.config.tasks or self._tasks]
        space, apart = label_space(wanted.protocol, tasks), wanted.protocol == "xtail"
        if not routed(method, wanted.seen, wanted.protocol):
            skipped = wanted.seen and method.skips_trigger(state)
            weights = PRETRAINED if skipped else self._fidelity.weights(method, state, wanted.task)
            found = self._evaluator.known(task, weights, space, apart)
            if skipped:  # its key is theta0's: of the expert it says nothing
                return found
            if wanted.seen and not space and by_own_expert(method, state, wanted.task):
                found = self._with_calibration(found, task, weights)
            if not judged(method, wanted.seen, wanted.protocol):
                return found
            rescaler = getattr(state.model, "rescalers", {}).get(wanted.task)
            more: dict[str, Any] = self._fidelity.of(method, state, wanted.task)
            return replace(found, rescaler=rescaler, **more)
        options = method.inference
        experts = {name: self._fidelity.weights(method, state, name) for name in state.tasks}
        learned = [self._tasks[name] for name in state.tasks]
        routing = self._routing(method, state, learned) if options.learns_routing else None
        prototypes = routing.prototypes if routing else {
            one.name: self._prototypes_of(method, one) for one in learned
        }  # fmt: skip
        found = self._evaluator.aggregated(task, experts, prototypes, options, space, apart, routing, learned)
        # Who predicts as this mixture did (`condu_ray.use`) has its experts' temperatures from what was measured.
        mixed = routing.temperatures if routing and wanted.seen else {}
        return replace(found, temperature=mixed.get(wanted.task))

    def _prototypes_of(self, method: Method, task: Task) -> Tensor:
        config, options, theta0 = method.config, method.inference, self._evaluator.features.backbone.fingerprint
        content = prototype_key(theta0, task, options.prototype_images)
        key = (content, options.prototypes, options.prototype_text)
        if key not in self._prototypes:
            self._prototypes[key] = prototypes_of(config.storage, theta0, task, options)
            while len(self._prototypes) > PROTOTYPES:
                self._prototypes.popitem(last=False)
        self._prototypes.move_to_end(key)
        return self._prototypes[key]

    def _routing(self, method: Method, state: ModelState, learned: list[Task]) -> Routing:
        config, options, backbone = method.config, method.inference, self._evaluator.features.backbone
        mixed = bool(self._held_out) and options.aggregation == "mixture"
        known = [state.tasks, [task.train_fingerprint for task in learned], options.identity()]
        key = content_hash([*known, *([method.name, state.id] if mixed else [])])
        if key not in self._routings:
            scale = float(backbone.model.logit_scale.detach().exp())
            made = load_routing(config.storage, backbone.fingerprint, learned, options, scale)
            if mixed:
                weights = {name: self._fidelity.weights(method, state, name) for name in state.tasks}
                temperatures = {name: self._temperature(name, one) for name, one in weights.items()}
                made = replace(made, temperatures=temperatures)
            self._routings[key] = made
            while len(self._routings) > STATES:
                self._routings.popitem(last=False)
        return self._routings[key]

    def _temperature(self, task: str, weights: Weights) -> float:
        """Of a task's expert, from the images of the task that were held out."""
        key = (task, weights.name)  # an expert from elsewhere may be two tasks'
        if key not in self._temperatures:
            self._temperatures[key] = self._evaluator.temperature(weights, self._held_out[task])
        return self._temperatures[key]

    def _with_calibration(self, found: Accuracy, task: Task, weights: Weights) -> Accuracy:
        """How much what an expert says of its own task's images can be believed."""
        before = self._evaluator.calibration_error(task, weights)
        if task.name not in self._held_out:
            return replace(found, calibration_before=before)
        temperature = self._temperature(task.name, weights)
        after = self._evaluator.calibration_error(task, weights, temperature)
        return replace(found, temperature=temperature, calibration_before=before, calibration_after=after)
