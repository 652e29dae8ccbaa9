"""The domains of mini-MTIL, in the benchmark's order."""

from condu_ray.benchmark.mini_mtil import charts, digits, faces, flowers, land, shapes, textures, vehicles
from condu_ray.benchmark.mini_mtil.domain import Domain

# alphabetical, as MTIL's own order I
DOMAINS: dict[str, Domain] = {
    module.DOMAIN.name: module.DOMAIN for module in (charts, digits, faces, flowers, land, shapes, textures, vehicles)
}
