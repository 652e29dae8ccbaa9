"""What is served, and how: the settings of `condu-ray serve`, which a Serve configuration file takes as its `args`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from condu_ray.settings import Settings, content_hash, whole_above_one


class Source(Settings):
    """Which state is served; a new one takes its place by `user_config`, without a request lost."""

    run: str = Field(min_length=1)
    """A run's name in `storage`, a run's folder, or a bundle's."""
    storage: str = "storage"
    """Storage folder of a name."""
    method: str | None = None
    """One of the run's methods; default: its only one."""
    session: int | None = Field(None, ge=1)
    """State after N learned tasks; default: the last that is committed."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of its passes; default: the one that the run was measured in, which a CPU without bf16 is slow in."""
    state: str | None = None
    """What that state and its prediction are, as it was found: a run, or a bundle's folder, may have another one under
    the same name and session later, which nobody is to load in its place."""
    calibration: str | None = None
    """What the temperatures are by which its experts are mixed, once all were measured: `--follow` takes a state again
    that it took before that. Nobody refuses others."""
    tasks: tuple[str, ...] = ()
    """Tasks of the run as it was found, learned or later ones: a replica that starts after one more was added answers
    among the same classes as the others. Empty: all that it has."""

    @property
    def key(self) -> str:
        """What replicas call it among themselves."""
        return content_hash(self.model_dump(mode="json"))[:12]


class Serving(Settings):
    """How a state is served over HTTP."""

    time_limit: float = Field(30.0, gt=0, le=3600)
    """Seconds a request may take, waiting and sending included; 504 after that."""
    max_bytes: int = Field(10_000_000, ge=1000, le=10**9)
    """Bytes of a request, at most; 413 beyond."""
    max_pixels: int = Field(50_000_000, ge=1, le=64_000_000)
    """Pixels of a picture, at most, by its header before it is decoded; 413 beyond. 50 megapixels take 150 MB."""
    max_classes: int = Field(1000, ge=1, le=100_000)
    """Words to choose from that a request may give itself, at most; 413 beyond."""
    decoders: int = Field(2, ge=1, le=64)
    """Pictures that a front replica decodes at once, each in a thread."""
    max_ongoing_requests: int = Field(64, ge=1, le=100_000)
    """Requests that a replica of the router or of the experts has at once, those that wait for a batch included."""
    max_queued_requests: int = Field(64, ge=1, le=100_000)
    """Requests that wait for a replica, at most; 503 beyond, with Retry-After."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Pictures a forward pass, at most; what arrives while one is at work makes the next one."""
    batch_wait: float = Field(0.005, ge=0, le=1)
    """Seconds that the first picture of a batch waits for others."""
    experts_kept: int = Field(4, ge=1, le=1000)
    """Experts that a replica keeps decoupled on its device, those used last; others are made from the shared delta."""
    at_once: bool = False
    """Whether the router's replicas answer pictures of unknown tasks by all experts in one forward pass, where these
    are of low rank (`condu-svd` without signs of the rest); each then has all factors, and asks no other replica."""
    fronts: int = Field(1, ge=1, le=1000)
    """Replicas that take requests, decode pictures and answer."""
    min_replicas: int = Field(1, ge=1, le=1000)
    """Replicas of the router, and as many of the experts, that are always there."""
    max_replicas: int = Field(1, ge=1, le=1000)
    """Replicas of each of them when many ask, at most; above `min_replicas` Ray Serve adds and removes them."""
    target_ongoing_requests: float = Field(16.0, gt=0)
    """Requests at work a replica that adding and removing aims at."""
    cpus_per_replica: float = Field(0.25, gt=0)
    """Logical CPUs that a replica of the router or of the experts asks Ray for."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs a replica (0.5: two share one); 0: it computes on the CPU."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads a replica."""

    _gpus = field_validator("gpus_per_replica")(whole_above_one)

    @model_validator(mode="after")
    def _in_order(self) -> Serving:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self

    @property
    def admitted(self) -> int:
        """Predictions that are at work or wait at once, at most: what fits into the queue and the fewest replicas."""
        return self.max_queued_requests + self.min_replicas * self.max_ongoing_requests


class ServeArguments(Source, Serving):
    """What a Serve configuration file gives as `args`: a source and how it is served, flat."""

    @property
    def source(self) -> Source:
        """What is served first."""
        return Source.model_validate({name: getattr(self, name) for name in Source.model_fields})

    @property
    def serving(self) -> Serving:
        """How."""
        return Serving.model_validate({name: getattr(self, name) for name in Serving.model_fields})
