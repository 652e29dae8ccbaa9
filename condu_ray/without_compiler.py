"""Loading torchvision and timm, and making an optimiser, without torch's compiler, which most processes never use.

`torch._dynamo` and what it loads (SymPy, inductor, distributed tensors: 870 modules) take a third of open_clip's
start. torchvision loads it for one function that tracing asks (`ops/roi_align.py`), timm for a decorator
(`layers/typing.py`): both are put off until they are called. An optimiser loads it to have its methods left out of what
is compiled, which none of ours is part of.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
ASKED = f"{COMPILER}.utils"
_DISABLED = "__dynamo_disable"
"""Where `torch._disable_dynamo` keeps what it calls, which it loads the compiler for at the first call."""


class _Later(ModuleType):
    """Stands where `torch._dynamo.utils` will be; whatever else is asked of it is the real one's, loaded for it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as importlib asks of any module: of no use to who wants a function
            raise AttributeError(name)
        if sys.modules.get(ASKED) is self:
            del sys.modules[ASKED]
        return getattr(importlib.import_module(ASKED), name)

    def is_compile_supported(self, device_type: str) -> bool:
        """What torchvision takes from there as it is loaded, and calls while torch traces."""
        return bool(importlib.import_module(ASKED).is_compile_supported(device_type))


def _disabled(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """`torch.compiler.disable` in torch's own form of it that loads the compiler when the function is called."""
    import torch

    return torch._disable_dynamo(fn, recursive)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Has what is imported inside ask torch's compiler for nothing, but when it uses it.

    A thread that needs the compiler meanwhile has it loaded. Where it is loaded already nothing changes.
    """
    import torch
    import torch.compiler

    if COMPILER in sys.modules:
        yield
        return
    later, disable = _Later(ASKED), torch.compiler.disable
    sys.modules[ASKED] = later
    torch.compiler.disable = _disabled
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(ASKED) is later:
            del sys.modules[ASKED]


def undecorated(inner: Callable[..., Any]) -> None:
    """Has a function that torch keeps out of compiled ones (`torch._disable_dynamo`) run as it is.

    A compiled function that calls it would trace it, then. Where the compiler is loaded already nothing changes.

    Args:
        inner: as torch decorated it; where torch has another way by now, nothing changes either.
    """
    fn = getattr(inner, "__wrapped__", None)
    if fn is not None and COMPILER not in sys.modules and getattr(fn, _DISABLED, None) is None:
        setattr(fn, _DISABLED, fn)
