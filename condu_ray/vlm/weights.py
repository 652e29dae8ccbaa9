"""Files of weights, read without running anything: safetensors, and what torch.save wrote of tensors alone.

A backbone's spec needs this module and travels to processes without torch, so torch is loaded only where a file is.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""What safetensors calls the types of torch."""
INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "params", "weights")
"""What training checkpoints call the weights among what else they hold, by preference."""
SAFELY = "load it where it can be trusted, and write it with safetensors.torch.save_file(model.state_dict(), ...)"
"""What to do about a file that is not read."""


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message names the model, tag or file."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, looked at.

    Attributes:
        path: the file.
        stored: type (as safetensors calls it) and shape of each tensor.
        load: returns the tensors, on the CPU.
        notes: what was chosen of it, a line each.
    """

    path: Path
    stored: dict[str, tuple[str, tuple[int, ...]]]
    load: Callable[[], dict[str, Tensor]]
    notes: tuple[str, ...] = ()


def pickled(path: Path) -> bool:
    """Whether a file is what torch.save writes: a zip archive with a pickle, or before torch 1.6 a bare one."""
    with path.open("rb") as file:
        start = file.read(9)
    # Safetensors begin with the length of a JSON object, of which the first bytes may look like a pickle's.
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[8:] != b"{")


def check_weights(path: Path) -> None:
    """Refuses a file of weights by its first look: damaged, empty, or TorchScript, which is code.

    Raises:
        BackboneError: with what to do.
    """
    try:
        if pickled(path):
            _refuse_script(path)
            return
        with safe_open(path, framework="pt") as tensors:
            if not tensors.keys():
                raise BackboneError(f"{path}: holds no tensor; copy it anew")
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror or error}); look at the disk") from error
    except SafetensorError as error:
        raise BackboneError(f"{path}: cannot be loaded: cut short or no safetensors ({error}); copy it anew") from error


def _refuse_script(path: Path) -> None:
    if not zipfile.is_zipfile(path):  # a bare pickle, or an archive that is cut short, as loading says
        return
    with zipfile.ZipFile(path) as archive:
        parts = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        raise BackboneError(
            f"{path}: is TorchScript, as OpenAI's own files are: code, which is not run; for OpenAI's weights give "
            f"--pretrained openai with the architecture as --model (ViT-B-16, ...), else {SAFELY}"
        )


def read_weights(path: Path) -> WeightsFile:
    """Looks at a file of weights, whatever its name ends with.

    Raises:
        BackboneError: as `check_weights`, or it holds no weights.
    """
    check_weights(path)
    if pickled(path):
        tensors, notes = _unpickled(path)
        stored = {name: (_kind(one), tuple(one.shape)) for name, one in tensors.items()}
        return WeightsFile(path, stored, lambda: tensors, notes)
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        stored = {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    return WeightsFile(path, stored, partial(load_file, path))


def _kind(tensor: Tensor) -> str:
    name = str(tensor.dtype)
    return KINDS.get(name.removeprefix("torch."), name)


def _unpickled(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Reads the tensors of a checkpoint of torch, by the reader that knows tensors and plain containers alone."""
    import torch

    try:
        if zipfile.is_zipfile(path) and path.suffix != ".safetensors":  # torch goes by that end, too
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with path.open("rb") as file:
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and what else a damaged archive gives
        # Torch's own words advise to run what is in the file.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            why = f"holds more than tensors ({named[1]}), which would run code when it is opened; {SAFELY}"
        else:
            why = f"cannot be read as a checkpoint of torch ({type(error).__name__}): cut short? Copy it anew"
        raise BackboneError(f"{path}: {why}") from error
    notes: list[str] = []
    state = _state(found, path, notes)
    tensors = {str(name): value.detach() for name, value in state.items() if isinstance(value, torch.Tensor)}
    if odd := [name for name, value in tensors.items() if value.is_quantized or value.layout != torch.strided]:
        raise BackboneError(f"{path}: tensor {odd[0]} is quantised or sparse; take the weights as they were before")
    return tensors, tuple(notes)


def _state(found: Any, path: Path, notes: list[str]) -> Mapping[str, Any]:
    """Returns the weights of what a checkpoint holds."""
    while isinstance(found, Mapping):
        inside = next((key for key in INSIDE if isinstance(found.get(key), Mapping) and _weighs(found[key])), None)
        if inside is None:
            if _weighs(found, deep=False):
                return found
            break
        beside = ", ".join(str(key) for key in found if key != inside)
        notes.append(f"{path}: of what it holds, {inside} is taken" + (f" (beside it: {beside})" if beside else ""))
        found = found[inside]
    held = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise BackboneError(f"{path}: holds no weights by name ({held[:200]}); {SAFELY}")


def _weighs(found: Mapping[str, Any], *, deep: bool = True) -> bool:
    """Whether a mapping is weights by name, or `deep` holds such a one."""
    from torch import Tensor

    if any(isinstance(value, Tensor) for value in found.values()):
        return True
    return deep and any(isinstance(found.get(key), Mapping) and _weighs(found[key]) for key in INSIDE)
