"""What is said over HTTP, as OpenAPI describes it, and that description as a page that needs no other host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from condu_ray.use.edition import About
from condu_ray.use.serving import Serving


class _Document(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, populate_by_name=True)


class Class(_Document):
    """A class and its probability."""

    name: str
    probability: float


class Expert(_Document):
    """Who answered."""

    name: str
    """A task's name; `pretrained` is the model before any task."""
    weight: float
    """How much it counted; all of them sum to 1."""


class Prediction(_Document):
    """What a picture shows."""

    label: str | None = Field(alias="class")
    """The likeliest class."""
    probability: float | None
    """Its probability."""
    task: str | None
    """The task whose class that is; null for a request's own words."""
    classes: list[Class]
    """The likeliest classes, the likeliest first."""
    experts: list[Expert]
    """Who answered."""
    similarity: float | None
    """Cosine to the nearest class prototype, -1 to 1: how sure the router could be; null where nothing was routed."""
    tasks: list[Class]
    """The router's probability of each learned task, where it has such."""
    new: float | None
    """Probability that the picture is of no learned task, where there is one."""
    state: str
    """Who was asked: run, method and session."""
    session: int
    """Tasks that were learned."""


class Task(_Document):
    """A task of what is served."""

    name: str
    learned: bool
    classes: list[str]


class Served(_Document):
    """What is served."""

    state: str
    session: int
    tasks: list[Task]
    needs_task: bool
    """Whether a request has to name the task, because the method has no router."""
    limits: dict[str, float]

    @classmethod
    def of(cls, about: About, serving: Serving) -> Served:
        """Makes it of what replicas say."""
        assert about.source.session is not None, "resolved"
        return cls(
            state=about.name,
            session=about.source.session,
            tasks=[
                Task(name=name, learned=name in about.learned, classes=list(classes))
                for name, classes in about.classes.items()
            ],
            needs_task="" in about.refused,
            limits={name: getattr(serving, name) for name in ("time_limit", "max_bytes", "max_pixels", "max_classes")},
        )


class Health(_Document):
    """All is well."""

    status: str = "ok"
    state: str


class Refusal(_Document):
    """Why a request is not answered."""

    detail: str
    """A sentence that says what is wrong and what to do."""


def reference(schema: Mapping[str, Any]) -> str:
    """Returns a page of all paths, parameters and answers; plain HTML, no script, nothing from elsewhere.

    Args:
        schema: OpenAPI's.
    """
    info, parts = schema["info"], []
    for path, methods in schema["paths"].items():
        for method, one in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>{_text(one.get('description', ''))}")
            if parameters := one.get("parameters"):
                rows = [
                    (f"<code>{escape(item['name'])}</code>", escape(item.get("description", ""))) for item in parameters
                ]
                parts.append(_table(("parameter of the address", "what it says"), rows))
            if body := one.get("requestBody"):
                parts.append(f"<p>Body: {', '.join(f'<code>{escape(kind)}</code>' for kind in body['content'])}</p>")
            rows = []
            for status, answer in one["responses"].items():
                content = answer.get("content", {}).get("application/json", {}).get("schema", {})
                name = content.get("$ref", "").rpartition("/")[2]
                link = f'<a href="#{escape(name)}">{escape(name)}</a>' if name else ""
                rows.append((f"<code>{escape(status)}</code>", f"{escape(answer.get('description', ''))} {link}"))
            parts.append(_table(("status", "answer"), rows))
    parts.append("<h2>Answers</h2>")
    for name, shape in schema.get("components", {}).get("schemas", {}).items():
        if "ValidationError" in name:  # FastAPI's own form, which is not used here
            continue
        rows = [
            (f"<code>{escape(field)}</code>", f"{escape(_kind(what))}{_dash(what.get('description', ''))}")
            for field, what in shape.get("properties", {}).items()
        ]
        table = _table(("field", "what it is"), rows)
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3>{_text(shape.get("description", ""))}{table}')
    return _PAGE.format(title=escape(f"{info['title']} {info['version']}"), about=_text(info["description"]),
                        body="\n".join(parts))  # fmt: skip


def _text(text: str) -> str:
    return "".join(f"<p>{escape(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip())


def _dash(text: str) -> str:
    return f" – {escape(text)}" if text else ""


def _kind(what: Mapping[str, Any]) -> str:
    if "anyOf" in what:
        return " or ".join(_kind(one) for one in what["anyOf"])
    if "$ref" in what:
        return str(what["$ref"]).rpartition("/")[2]
    if what.get("type") == "array":
        return f"list of {_kind(what['items'])}"
    return str(what.get("type", json.dumps(what)))


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{first}</td><td>{second}</td></tr>" for first, second in rows)
    return f"<table><thead><tr><th>{head[0]}</th><th>{head[1]}</th></tr></thead><tbody>{lines}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: reference</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 0 auto; padding: 1rem; }}
table {{ border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; table-layout: fixed; }}
th, td {{ text-align: left; padding: .3rem .5rem; border-bottom: 1px solid #8886; vertical-align: top;
  overflow-wrap: anywhere; }}
th:first-child {{ width: 34%; }}
h2 {{ margin-top: 2rem; overflow-wrap: anywhere; }}
code {{ font: .95em ui-monospace, monospace; }}
</style></head><body><main><h1>{title}</h1>{about}
<p><a href="/">Try it</a> · <a href="/openapi.json">openapi.json</a></p>
{body}</main></body></html>
"""
