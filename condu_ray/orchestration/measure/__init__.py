"""Measuring: evaluators, the service that shares them, and theta0's one pass for prototypes."""
