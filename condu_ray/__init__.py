"""condu_ray: continual learning of CLIP-like models by merging, orchestrated on Ray."""

__version__ = "0.1.0"
