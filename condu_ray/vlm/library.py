"""open_clip, loaded without torch's compiler: who needs it takes it from here."""

from condu_ray.without_compiler import without_compiler

with without_compiler():
    import open_clip

__all__ = ["open_clip"]
