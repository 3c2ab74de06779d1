"""The API's description: OpenAPI with this service's own limits in it, and the same for people, without a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from sldcore import __version__
from sldcore.service.http.schemas import ImageRequest, ModerationRequest
from sldcore.service.settings import ServiceSettings

TITLE: Final = "Pictures with safety guidance"
_SUMMARY: Final = (
    "Pictures made and reviewed under a safety policy, in the shapes that clients of OpenAI's API speak."
)
_REFERENCE: Final = "#/components/schemas/{model}"


def describe(app: FastAPI, settings: ServiceSettings) -> None:
    """Have the app describe itself: once, when it is first asked to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=TITLE, version=__version__, summary=_SUMMARY, routes=app.routes)
            _add_requests(document, settings)
            _leave_out_422(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_requests(document: dict[str, Any], settings: ServiceSettings) -> None:
    """The bodies, which routes read themselves."""
    schemas = document["components"]["schemas"]
    for model in (ImageRequest, ModerationRequest):
        schemas[model.__name__] = _schema(model)
    limits = settings.limits
    asked = schemas[ImageRequest.__name__]["properties"]
    asked["prompt"]["maxLength"] = limits.prompt_characters
    _limit(asked["n"], limits.pictures)
    _limit(asked["steps"], max(model.max_steps for model in settings.models.values()))
    for kind in schemas[ModerationRequest.__name__]["properties"]["input"]["anyOf"]:
        if kind["type"] == "array":
            kind["maxItems"] = limits.review_inputs
        else:
            kind["maxLength"] = limits.prompt_characters


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    # A copy: parts of it are the models' own, and every app fills in its limits.
    return deepcopy(model.model_json_schema(ref_template=_REFERENCE))


def _limit(field: Mapping[str, Any], most: int) -> None:
    number = next(kind for kind in field["anyOf"] if kind.get("type") == "integer")
    number["maximum"] = min(most, number["maximum"])


def _leave_out_422(document: dict[str, Any]) -> None:
    """The framework describes its own answer to a wrong parameter, which here is a 400 like others."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def page_of(document: Mapping[str, Any]) -> str:
    """The description as HTML that loads nothing."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(document['info']['title'])}: API</title></head><body><main>",
        f"<h1>{escape(document['info']['title'])}: API</h1><p>{escape(document['info'].get('summary', ''))}</p>",
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>',
        *_operations(document["paths"]),
        "<h2>Schemas</h2>",
        *_schemas(document["components"]["schemas"]),
        "</main></body></html>",
    ]
    return "\n".join(parts)


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
            key = "needs a key" if operation.get("security") else "needs no key"
            yield f"<p>It {key}.</p>{_parameters(operation)}<dl>"
            for status, answer in operation["responses"].items():
                yield f"<dt>{escape(str(status))}</dt><dd>{escape(answer['description'])}</dd>"
            yield "</dl>"


def _parameters(operation: Mapping[str, Any]) -> str:
    found = [_json(each) for each in operation.get("parameters", ())]
    if "requestBody" in operation:
        found.append(_json(operation["requestBody"]["content"]))
    return "".join(found)


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f"<h3>{escape(name)}</h3>{_json(schema)}"


def _json(document: Any) -> str:
    return f"<pre>{escape(json.dumps(document, indent=2, ensure_ascii=False))}</pre>"
