"""For schemathesis: right requests name models and adapters that are there, and ask for little."""

from __future__ import annotations

import schemathesis

KNOWN = {"model": "one", "models": ["two", "tiny"], "lora_path": "two", "prompt": ["The town", "Its river"],
         "messages": [{"role": "user", "content": "Hello"}]}
MOST = {"max_tokens": 4, "max_completion_tokens": 4, "n": 2}
ONE_OF_TWO = {"question": "questions", "model": "models", "max_completion_tokens": "max_tokens", "best_of": "n"}


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    changed = {**body, **{name: value for name, value in KNOWN.items() if name in body and len(body) % 4}}
    changed.update((name, min(body[name], most)) for name, most in MOST.items() if isinstance(body.get(name), int))
    for one, other in ONE_OF_TWO.items():
        if one in changed and other in changed:
            del changed[one]
    return changed
