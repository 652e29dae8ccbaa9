"""MTIL's eleven data sets in the form of tasks: catalog, class names, layouts, conversion."""

from condu_ray.benchmark.ingest.catalog import CATALOG, DataSet
from condu_ray.benchmark.ingest.names import IngestError, Names
from condu_ray.benchmark.ingest.outcomes import Outcome, prepare, show

__all__ = ["CATALOG", "DataSet", "IngestError", "Names", "Outcome", "prepare", "show"]
