"""Words on Parquet files that are not what they should be: what cannot be opened, and what columns hold."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_KINDS = {"image": "bytes of encoded images", "label": "integers, such as int32"}


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type gives bytes, in whatever form Arrow keeps them."""
    if pa.types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(fits(kind) for fits in tests) and not pa.types.is_decimal(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type gives text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(fits(kind) for fits in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def column_problems(schema: pa.Schema, columns: tuple[str, ...] = ("image", "label")) -> list[str]:
    """Returns what is wrong with the columns that a file needs, and what to do; empty if nothing is.

    Args:
        schema: of the file.
        columns: `image`, or `image` and `label`.
    """
    problems = []
    for column in columns:
        kind, types = _KINDS[column], [schema.field(index).type for index in schema.get_all_field_indices(column)]
        if len(types) > 1:
            problems.append(
                f"column {column!r} is there {len(types)} times (columns: {schema.names}); keep one of them"
            )
        elif not types:
            other = [name for name in schema.names if name.strip().casefold() == column]
            advice = f"rename {other[0]!r}" if other else f"write it once, with {kind}"
            problems.append(f"column {column!r} is missing (columns: {schema.names}); {advice}")
        elif column == "label" and not pa.types.is_integer(types[0]):
            problems.append(f"column 'label' holds {types[0]}; write {kind}")
        elif column == "image" and not is_bytes(types[0]):
            problems.append(f"column 'image' holds {types[0]}; {_bytes_of(types[0])}")
    return problems


def _bytes_of(kind: pa.DataType) -> str:
    """Returns what to write in place of a column that holds no bytes."""
    if pa.types.is_struct(kind):
        inner = [field.name for field in kind if is_bytes(field.type)]
        if inner:
            return f"write bytes of encoded images: its field {inner[0]!r} alone"
    if is_text(kind):
        return "write bytes of encoded images, not their paths or text"
    return "write bytes of encoded images"


def unreadable(path: Path, error: Exception) -> str:
    """Returns why a Parquet file cannot be opened, and what to do.

    Args:
        path: the file.
        error: what pyarrow or the system raised.
    """
    if os.path.islink(path) and not os.path.exists(path):
        return f"is a link to {os.readlink(path)}, where nothing is; mend the link, or copy the file"
    if isinstance(error, FileNotFoundError):
        return f"missing ({error}); write or copy it anew"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty (0 bytes), not Parquet; write or copy it anew"
    if isinstance(error, pa.ArrowNotImplementedError) or _is_whole(path):
        return f"is Parquet that pyarrow {pa.__version__} cannot read ({error}); {_write_as(error)}"
    return f"cut short or not Parquet ({error}); write or copy it anew"


def unreadable_rows(row: int, error: Exception) -> str:
    """Returns why rows cannot be read of a file that could be opened, and what to do."""
    if isinstance(error, pa.ArrowNotImplementedError):
        return f"cannot be read by pyarrow {pa.__version__} ({error}); {_write_as(error)}"
    return f"cannot be read after row {row} ({error}); the file is damaged, write or copy it anew"


def _write_as(error: Exception) -> str:
    if "codec" in str(error).casefold() or "compress" in str(error).casefold():
        return "write it with compression snappy, zstd or none"
    return f"write column 'image' with {_KINDS['image']} and 'label' with {_KINDS['label']}"


def _is_whole(path: Path) -> bool:
    """Whether a file's footer can be read, so that it is not cut short."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True
