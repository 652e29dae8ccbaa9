"""MTIL's eleven data sets in the form of tasks: catalog, class names, layouts, conversion."""

from condu_ray.benchmark.mtil.catalog import CATALOG, DataSet
from condu_ray.benchmark.mtil.names import IngestError, Names
from condu_ray.benchmark.mtil.outcomes import Outcome, prepare, show

__all__ = ["CATALOG", "DataSet", "IngestError", "Names", "Outcome", "prepare", "show"]
