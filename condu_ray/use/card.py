"""A model card: what a model was made of, by what, how well it does, its limits, and how it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condu_ray.report.text import escaped, fenced, json_text, markdown_page, markdown_table
from condu_ray.store.provenance import provenance
from condu_ray.use.about import DATA
from condu_ray.use.bundle import by_name
from condu_ray.use.served import Served
from condu_ray.vlm.spec import FOLDER, BackboneSpec

if TYPE_CHECKING:
    from condu_ray.use.peft import Adapter


def card(served: Served, task: str | None, form: str, adapter: Adapter | None = None) -> str:
    """Returns the card of an exported model as Markdown.

    Args:
        served: what was exported.
        task: whose model; None: that of all tasks.
        form: `open_clip`, `hf` or `peft`.
        adapter: what a card of an adapter is about.
    """
    method, about = served.method, served.about
    learned = served.state.tasks
    what = f"the task `{task}`" if task else f"the {len(learned)} tasks {', '.join(f'`{name}`' for name in learned)}"
    parts = [
        f"# {escaped(served.name)}: {escaped(task or 'all tasks')}",
        f"A CLIP-like model for {what}, made by condu_ray's method `{method.name}` ({escaped(method.paper)}) from the "
        f"pretrained backbone {escaped(_base(served))}.",
    ]
    if adapter is not None:
        exact = (
            "It is what the run serves."
            if adapter.exact
            else ("What the run serves after merging is another model, of no low rank: export it as open_clip.")
        )
        parts.append(f"This folder holds {adapter.what}, of rank {adapter.rank}. {exact}")
    parts += ["## Load it", fenced(_code(served, task, form), "python")]
    parts += ["## How well it does", *_accuracies(served, task, adapter is None or adapter.exact)]
    parts += ["## What it was trained on", _data(served, task)]
    parts += [
        "## Limits",
        "It was measured on the test images of the tasks above alone, and says nothing of pictures unlike them: it "
        "chooses one of the classes that it is asked of, whatever the picture shows, and its probabilities are not "
        "calibrated. What the backbone has of bias and of errors, this has too. Do not use it to decide about people.",
        "## Licence",
        "A derivative of the backbone's weights: the licence of these holds for it (OpenAI's CLIP: MIT; open_clip's "
        "tags: see the tag's own card; condu_ray's tiny-clip: Apache-2.0), beside the terms of the data sets above. "
        "Look them up before you pass it on: this file cannot know them.",
        "## Made by",
        fenced(json_text({"state": served.state.id, "backbone": served.backbone.fingerprint, **provenance()}), "json"),
    ]  # fmt: skip
    if "settings" in about:
        parts += ["## Settings", fenced(json_text(_told(served)), "json")]
    return markdown_page(parts)


def _base(served: Served) -> str:
    spec = served.backbone.spec
    return spec.name if by_name(spec) else "of a file of the machine that it was made on"


def _told(served: Served) -> dict[str, Any]:
    """The settings without the places of a machine."""
    local = () if by_name(served.backbone.spec) else ("model", "pretrained")
    left_out = (*local, *DATA, "distillation")
    return {key: value for key, value in served.about["settings"].items() if key not in left_out}


def _accuracies(served: Served, task: str | None, exact: bool) -> list[str]:
    if not exact:
        return ["It was not measured: the accuracies that the run has are of what it serves."]
    found = served.about.get("accuracy", {})
    rows = [
        [f"`{protocol}`", f"`{name}`", f"{value:.2f}"]
        for protocol, values in found.items()
        for name, value in values.items()
        if task in (None, name)
    ]
    if not rows:
        return ["Nothing was measured yet."]
    settings = served.about.get("settings", {})
    images, most = settings.get("measure_on", "test"), settings.get("evaluation", {}).get("max_images")
    part = f"at most {most:,} of " if most else ""
    told = f"Percent of {part}the task's {images} images, as the run measured it after this session. Protocol `task`: "
    told += "the task is known; the others have the router find the experts, which this folder does not hold."
    return [told, markdown_table(["protocol", "task", "accuracy"], rows, left=2)]


def _data(served: Served, task: str | None) -> str:
    alone = served.method.starts_from == "pretrained" and not served.method.keeps_model
    rows = [
        [f"`{name}`", str(one["train_images"]), str(one["test_images"]), f"`{one['fingerprint'][:16]}`"]
        for name, one in served.about.get("data", {}).items()
        if name in served.state.tasks and (task in (None, name) or not alone)
    ]
    return markdown_table(["task", "training images", "test images", "fingerprint"], rows, left=1)


SEEN = (
    "def seen(path):  # as the run saw its pictures: upright, on white where they are transparent, in RGB\n"
    '    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")\n'
    '    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")\n'
)
"""Neither open_clip's nor transformers' preprocessing does so: both resize palettes, and drop alpha."""
CLEAN = (
    "def clean(text):  # as CLIP's tokenizer does first, and that of transformers does not: quotes, ligatures, &amp;\n"
    '    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()\n'
)


def _built(spec: BackboneSpec) -> str:
    """How a reader builds the backbone as `base`, without the places of a machine; BACKBONE stands for one."""
    if spec.name == "tiny-clip":
        return "import condu_ray\nfrom peft import PeftModel\n\nbase = condu_ray.load_backbone().model"
    given = ['"local-dir:BACKBONE"' if spec.model.startswith(FOLDER) else repr(spec.model)]
    given += [f"pretrained={spec.pretrained if by_name(spec) else 'BACKBONE'!r}"] if spec.pretrained else []
    given += ["force_quick_gelu=True"] if spec.quick_gelu else []  # or it would be built with plain GELU
    return f"import open_clip\nfrom peft import PeftModel\n\nbase = open_clip.create_model({', '.join(given)})"


def _code(served: Served, task: str | None, form: str) -> str:
    labels = served.task(task or served.state.tasks[-1])
    words = f'words = json.load(open("FOLDER/classes.json", encoding="utf-8"))[{labels.name!r}]'
    prompts = "".join(
        (
            "def prompts(name):  # a class's features are the mean of its prompts' normalised ones\n",
            '    return [template.replace("{}", name) for template in words["templates"]]\n',
        )
    )
    if form == "hf":
        size, by = served.backbone.spec.image_size[0], served.backbone.spec.preprocess["interpolation"].upper()
        return (
            "import html, json\n\n"
            "import ftfy\n"
            "from PIL import Image, ImageOps\n"
            "from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize\n"
            "from transformers import CLIPModel, CLIPProcessor\n\n"
            'model, processor = CLIPModel.from_pretrained("FOLDER").eval(), CLIPProcessor.from_pretrained("FOLDER")\n'
            "# CLIP's own crop: the processor's lies a pixel beside it, for one in four lengths of the longer side\n"
            f"crop = Compose([Resize({size}, InterpolationMode.{by}), CenterCrop({size})])\n"
            f"{words}\n\n\n{SEEN}\n\n{CLEAN}\n\n{prompts}\n\n"
            'texts = [clean(prompts(name)[0]) for name in words["classes"]]\n'
            'images = [crop(seen("a.jpg"))]\n'
            'asked = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")\n'
            "logits = model(**asked).logits_per_image"
        )
    if form == "peft":
        return (
            f"{_built(served.backbone.spec)}  # the backbone named above\n"
            'model = PeftModel.from_pretrained(base, "FOLDER")'
        )
    merges = ', bpe_path="FOLDER/bpe_simple_vocab.txt.gz"' if served.backbone.spec.tokenizer else ""
    return (
        "import json\n\nimport open_clip\nfrom PIL import Image, ImageOps\n\n"
        'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")\n'
        f'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER"{merges})\n'
        f"{words}\n\n\n{SEEN}\n\n{prompts}\n\n"
        'image = model.eval().encode_image(preprocess(seen("a.jpg"))[None], normalize=True)\n'
        'text = model.encode_text(tokenizer([prompts(name)[0] for name in words["classes"]]), normalize=True)\n'
        "logits = model.logit_scale.exp() * image @ text.T"
    )
