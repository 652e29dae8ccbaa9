"""Data sets as people have them: the same pictures in each of the forms, in the true layouts."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("golden_retriever", "SeaLake", "wren")
COLOURS = ((200, 160, 60), (20, 60, 200), (120, 90, 70))


def picture(label, number, size=24):
    """Blocks of colour about the class's own: unlike one another, and not changed much by another size."""
    generator = np.random.default_rng([label, number])
    blocks = (
        generator.integers(-90, 90, (6, 6, 1)) + np.asarray(COLOURS[label]) + generator.integers(-30, 30, (6, 6, 3))
    )
    return Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def samples(train=4, test=2):
    """(split, label, number, bytes) of every picture."""
    counts = {"train": range(train), "test": range(100, 100 + test)}
    return [
        (split, label, number, encoded(picture(label, number)))
        for split, numbers in counts.items()
        for number in numbers
        for label in range(3)
    ]


def class_folders(folder, split=True):
    for part, label, number, data in samples():
        path = folder / (part if split else "") / CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def hugging_face(folder, names=CLASSES, label="label"):
    """As `Dataset.to_parquet` and the hub write it: struct of bytes and path, features in the schema's metadata."""
    features = {"image": {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (folder / "data").mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), (label, pa.int64())], metadata=metadata)
    for split in ("train", "test"):
        own = [one for one in samples() if one[0] == split]
        images = [{"bytes": data, "path": f"{number}.png"} for _, _, number, data in own]
        table = pa.table([pa.array(images, kind), pa.array([one[1] for one in own], pa.int64())], schema=schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


def add(shard, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))


def shards(folder, end="cls"):
    """As WebDataset's ShardWriter: key.png and the class, by number, in JSON, or by name."""
    folder.mkdir(parents=True)
    if end in ("cls", "json"):
        (folder / "classnames.txt").write_text("\n".join(CLASSES))
    said = {
        "cls": lambda label: str(label),
        "json": lambda label: json.dumps({"label": label}),
        "txt": CLASSES.__getitem__,
    }
    for split in ("train", "test"):
        own = [one for one in samples() if one[0] == split]
        for number, part in enumerate((own[: len(own) // 2], own[len(own) // 2 :])):
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as shard:
                for index, (_, label, _, data) in enumerate(part):
                    add(shard, f"{index:06d}.{end}", said[end](label).encode())
                    add(shard, f"{index:06d}.png", data)


def listed(folder, delimiter=","):
    (folder / "images").mkdir(parents=True)
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "class", "split"])
        for split, label, number, data in samples():
            name = f"images/{split}-{label}-{number}.png"
            (folder / name).write_bytes(data)
            writer.writerow([name, CLASSES[label], split])


FORMS = {
    "class folders": class_folders,
    "hugging face": hugging_face,
    "webdataset cls": shards,
    "webdataset json": lambda folder: shards(folder, "json"),
    "webdataset txt": lambda folder: shards(folder, "txt"),
    "csv": listed,
    "tsv": lambda folder: listed(folder, "\t"),
}
