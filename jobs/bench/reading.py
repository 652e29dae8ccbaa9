"""What an image costs that training reads, by the order of rows in its file: bytes, memory, time to the first one.

`python jobs/bench/reading.py` writes files of random bytes in place of photographs, mixed and sorted by class, large
and small, and reads each as a decoder does, in a process of its own; nothing is decoded. Bytes are those that the
process asked of the kernel, from disk or from its cache.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write(path: Path, rows: int, size: int, mixed: bool, group: int) -> None:
    """Writes `rows` images of `size` bytes of ten classes, in row groups of `group` rows."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, rows) if mixed else np.sort(generator.integers(0, 10, rows))
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, group):
            images = [generator.bytes(size) for _ in range(min(group, rows - start))]
            writer.write_table(pa.table([images, labels[start : start + group]], schema=schema))


def asked() -> int:
    """Bytes that this process asked the kernel for, so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def read(path: str, count: int) -> None:
    """Reads `count` images of the stream; prints what they cost."""
    from condu_ray.learn.chunks import epoch_order
    from condu_ray.learn.row_reader import RowReader

    bytes_before, memory_before = asked(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    reader = RowReader()
    layout = reader.layout(path)
    order = epoch_order(layout.windows, 0, 0)
    useful, seen, first = 0, [], 0.0
    for position in range(count):
        image, label = reader.read(path, int(order[position % layout.rows]))
        first = first or time.perf_counter() - begin
        useful += len(image)
        seen.append(label)
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before
    per_class = np.bincount(seen[:500], minlength=10)
    print(
        f"{Path(path).stem:>17}  {(asked() - bytes_before) / useful:8.2f} {memory / 1024:8.0f} MiB {first:8.2f} s "
        f"{count / seconds:10.0f}   {per_class.min()} to {per_class.max()}"
    )


def main() -> None:
    """Writes the files and reads each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kilobytes", type=int, default=100, help="of one image of the large files")
    parser.add_argument("--read", nargs=2, metavar=("FILE", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read[0], int(options.read[1]))
        return
    print(
        "          file  bytes asked for by bytes given, memory, first image, images/s, of each class in the first 500"
    )
    with tempfile.TemporaryDirectory() as folder:
        for mixed in (True, False):
            for name, size, group in (("small", 1, 1000), ("large", options.kilobytes, 1000), ("groups-of-1", 1, 1)):
                path = Path(folder) / f"{'mixed' if mixed else 'sorted'} {name}.parquet"
                write(path, options.images, size * 1000, mixed, group)
                command = [sys.executable, __file__, "--read", str(path), str(options.images)]
                subprocess.run(command, check=True)
                path.unlink()


if __name__ == "__main__":
    main()
