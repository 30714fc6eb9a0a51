"""The process in which an untrusted chat template runs: `python -I chat_worker.py`, started by `chat_template.py`.

Jinja2's sandbox keeps a template from reaching Python, but not from computing forever: one comparison of nested lists
can take years inside a single C call that nothing within the process can interrupt. So each rendering has limits that
the kernel enforces: processor time by a timer whose signal ends the process, memory by RLIMIT_AS.

Protocol: one JSON value per line. First comes the template; the answer is {} or {"error": …}. Then come requests, each
a list of messages with the renderings wanted: [messages, [[number of messages, generation prompt], …]]. Each rendering
is answered by {"text": …} or {"error": …, "limit": whether a limit was met}. Imports nothing but the standard library
and Jinja2.
"""

import datetime
import json
import resource
import signal
import sys
from functools import partial

SECONDS = 1  # of processor time per rendering
MEMORY = 1 << 29  # bytes of address space
LONGEST_ERROR = 500  # characters


class Limit(Exception):
    """A limit was met."""


def environment(now):
    """Jinja2 as transformers sets it up for chat templates, without what is random."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} … {% endgeneration %}: marks what the assistant says; renders as its content."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=lambda form: now.strftime(form))
    # The same conversation must always have the same tokens.
    del made.filters["random"], made.globals["lipsum"]
    return made


def render(template, variables, messages, generation_prompt, most):
    """The text, of at most `most` characters.

    Raises:
        Limit: the text would be longer.
    """
    pieces, length = [], 0
    for piece in template.generate(messages=messages, tools=None, documents=None,
                                   add_generation_prompt=generation_prompt, **variables):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise Limit(f"writes more than {most:,} characters for this conversation")
    return "".join(pieces)


def limited(work):
    """The answer to one step within the limits: {"text": …}, or {"error": …, "limit": …}."""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        return {"text": work()}
    except MemoryError:
        return {"error": f"needs more than {MEMORY >> 20:,} MiB of memory", "limit": True}
    except RecursionError:
        return {"error": "recurses without end", "limit": True}
    except Limit as error:
        return {"error": str(error), "limit": True}
    except Exception as error:  # a template can raise anything
        line = getattr(error, "lineno", None)
        words = str(error)[:LONGEST_ERROR] or type(error).__name__
        return {"error": words + (f" (line {line})" if type(line) is int else ""), "limit": False}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main():
    def say(value):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    first = json.loads(sys.stdin.readline())
    sys.path[:] = first["path"]
    made = environment(datetime.datetime.fromisoformat(first["now"]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = []
    answer = limited(lambda: found.append(made.from_string(first["source"])))
    say({name: value for name, value in answer.items() if name != "text"})
    for line in sys.stdin:
        messages, wanted = json.loads(line)
        most = first["most"] + 8 * sum(len(message["content"]) for message in messages)
        for count, prompt in wanted:
            say(limited(partial(render, found[0], first["variables"], messages[:count], prompt, most)))


if __name__ == "__main__":
    main()
