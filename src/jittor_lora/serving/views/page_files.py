"""The page's files, and sample contexts to ask about."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from jittor_lora.data.sources import SHIPPED

PAGE = Path(__file__).parents[1] / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# (article, paragraph) of the shipped sample: short paragraphs of different fields with plain questions.
CHOSEN = (("Yuan_dynasty", 39), ("Southern_California", 4), ("Chloroplast", 1), ("Doctor_Who", 3),
          ("Steam_engine", 3), ("Fresno,_California", 1))


class PageFile(NamedTuple):
    content: bytes
    kind: str
    tag: str


def page_files(folder: Path = PAGE) -> dict[str, PageFile]:
    """All files below the folder by their path in it; a request's path is looked up here and opens nothing."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in KINDS and path.is_file():
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = PageFile(content, KINDS[path.suffix], tag)
    return found


@functools.lru_cache(maxsize=1)
def samples() -> dict[str, Any]:
    """A few contexts of the shipped SQuAD sample with their questions and reference answers."""
    articles = {}
    if SHIPPED["sample-dev"].is_file():
        data = json.loads(SHIPPED["sample-dev"].read_text(encoding="utf-8"))["data"]
        articles = {article["title"]: article["paragraphs"] for article in data}
    contexts = []
    for title, number in CHOSEN:
        if title in articles:
            paragraph = articles[title][number]
            questions = [{"text": one["question"], "answers": list(dict.fromkeys(a["text"] for a in one["answers"]))}
                         for one in paragraph["qas"]]
            contexts.append({"title": title.replace("_", " "), "context": paragraph["context"],
                             "questions": questions})
    return {"source": "SQuAD v1.1, Rajpurkar et al. 2016; text from Wikipedia", "licence": "CC BY-SA 4.0",
            "contexts": contexts}


def router(service: Any) -> APIRouter:
    """GET / and /page/…: the page; GET /ui/samples."""
    files, contexts, routes = page_files(), samples(), APIRouter()

    def answer(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            return Response("No such file.\n", 404, media_type="text/plain")
        headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
        seen = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if file.tag in seen or "*" in seen:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.kind)

    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    @routes.api_route("/page/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return answer(request, name)

    @routes.get("/ui/samples", include_in_schema=False)
    async def sample_contexts() -> dict[str, Any]:
        return contexts

    return routes
