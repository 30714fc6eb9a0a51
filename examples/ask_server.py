#!/usr/bin/env python3
"""Asks a server that `jittor-lora serve` started: questions about a file, or a chat.

    python examples/ask_server.py --context notes.txt "Who wrote it?" "When?" --models smollm2-135m quickstart
    python examples/ask_server.py "Why is the sky blue?" --models smollm2-135m

Questions about a file go to /v1/answers, with nothing but Python; a chat goes through the openai package.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def events(url: str, key: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a stream.

    Raises:
        SystemExit: the server answers with an error.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json",
                                                                      "Authorization": f"Bearer {key}"})
    try:
        response = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        raise SystemExit(error.read().decode("utf-8", "replace")) from error
    with response as lines:
        for line in lines:
            data = line.decode("utf-8").strip().partition("data: ")[2]
            if data == "[DONE]":
                return
            if data:
                chunk = json.loads(data)
                if "error" in chunk:
                    raise SystemExit(chunk["error"]["message"])
                yield chunk


def ask(options: argparse.Namespace) -> None:
    """Each model's answers, as they are complete: its own words, and the likeliest spans of the file."""
    body = {"context": Path(options.context).read_text(encoding="utf-8").strip(), "questions": options.text,
            "models": options.models, "methods": ["generation", "span"], "spans": 3, "stream": True}
    texts: dict[tuple[int, str], str] = {}
    for chunk in events(f"{options.url}/v1/answers", options.key, body):
        if "usage" in chunk:
            print(f"{chunk['seconds']} s, {chunk['usage']}")
            continue
        place = chunk["question"], chunk["model"]
        head = f"{options.text[place[0]]} {place[1]}:"
        texts[place] = texts.get(place, "") + chunk.get("delta", "")
        if "finish_reason" in chunk:
            print(head, texts[place])
        if "spans" in chunk:
            print(head, "; ".join(f"{span['text']} at {span['start']} ({span['probability']:.1%})"
                                  for span in chunk["spans"]))


def chat(options: argparse.Namespace) -> None:
    """Each text as a user's turn in a conversation of its own, token by token."""
    import openai
    client = openai.OpenAI(base_url=f"{options.url}/v1", api_key=options.key)
    before = [{"role": "system", "content": options.system}] if options.system else []
    for model in options.models or [client.models.list().data[0].id]:
        for text in options.text:
            print(f"{model}: ", end="")
            chunks = client.chat.completions.create(
                model=model, messages=[*before, {"role": "user", "content": text}], temperature=0,
                max_tokens=options.max_tokens, stream=True)
            for chunk in chunks:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
            print()


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a server that jittor-lora serve started.")
    parser.add_argument("text", nargs="+", help="questions about --context, or what to say in a chat")
    parser.add_argument("--context", metavar="FILE", help="a text to ask about")
    parser.add_argument("--models", nargs="+", help="names of models (default: the base)")
    parser.add_argument("--system", help="turn of a system before a chat")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a turn in a chat (default: 128)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--key", default=os.environ.get("JITTOR_LORA_API_KEY", "none"),
                        help="the server's (default: the variable JITTOR_LORA_API_KEY)")
    options = parser.parse_args()
    (ask if options.context else chat)(options)


if __name__ == "__main__":
    main()
