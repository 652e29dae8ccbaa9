"""The cluster: Ray's settings, what fits on it, and work beside the main thread."""
