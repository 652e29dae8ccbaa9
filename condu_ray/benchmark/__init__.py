"""Tasks: their folders, checks, orders and few-shot subsets; mini-MTIL's drawings and MTIL's converters."""

from condu_ray.benchmark.check import Problem, check_task, require_valid
from condu_ray.benchmark.tasks import Task, TaskError, load_task, load_tasks

__all__ = ["Problem", "Task", "TaskError", "check_task", "load_task", "load_tasks", "require_valid"]
