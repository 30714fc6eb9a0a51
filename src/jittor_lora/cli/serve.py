"""`jittor-lora serve`: an API, and a page in the browser, for a base and its adapters."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from jittor_lora.cli.arguments import named_path_argument
from jittor_lora.cli.flags import add_flags, from_flags
from jittor_lora.cli.options import ComputeOptions
from jittor_lora.cli.served_adapters import named_adapters
from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import read_input
from jittor_lora.serving.process.hosts import host_and_port, is_loopback, origin_of
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.settings.base import PATH, VERBATIM, Settings, setting
from jittor_lora.settings.problems import Problem
from jittor_lora.settings.text import home_expanded

if TYPE_CHECKING:
    from jittor_lora.formats.adapter_source import AdapterSource

MODEL, LISTENING, ACCESS, LIMITS = "Model", "Listening", "Who may ask", "Limits"
KEY_VARIABLE = "JITTOR_LORA_API_KEY"
SHORTEST_KEY, LARGEST_KEY_FILE = 8, 4096
PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")
INSTALL = 'pip install "jittor-lora[serve]"'
DEFAULTS = ServeSettings()


class _Served(Settings):
    base: Optional[str] = setting(None, MODEL, "base model: a folder, a named base (gpt2, smollm2-135m), a Hub id, or "
                                  "auto; by default the one that the first adapter was trained on", holds=PATH,
                                  min_length=1)
    runs: Optional[str] = setting(None, MODEL, "show the run folders below DIR on the page", holds=PATH, min_length=1)


class ServeOptions(ComputeOptions, _Served):
    host: str = setting(DEFAULTS.host, LISTENING, "address to listen on; 0.0.0.0 for all, which needs a key",
                        min_length=1)
    port: int = setting(DEFAULTS.port, LISTENING, "port to listen on; 0 for any free one", ge=0, le=65535)
    browser: bool = setting(True, LISTENING, "open the page in a browser, if the command runs in a terminal "
                            "on a desktop")

    api_key: Optional[str] = setting(None, ACCESS, "key that requests must carry; other users of this machine may see "
                                     f"it among the processes, but not --api-key-file or the variable {KEY_VARIABLE}",
                                     holds=VERBATIM)
    api_key_file: Optional[str] = setting(None, ACCESS, "file that holds the key", holds=PATH, min_length=1)
    without_key: bool = setting(False, ACCESS, "let other machines ask without a key")

    max_body: int = setting(DEFAULTS.max_body_bytes >> 20, LIMITS, "size of a request in MiB", ge=1, le=1024)
    max_tokens: int = setting(DEFAULTS.max_tokens, LIMITS, "new tokens per text", ge=1)
    max_prompt_tokens: Optional[int] = setting(None, LIMITS, "tokens per prompt; by default as many as the model has "
                                               "positions", ge=1)
    max_texts: int = setting(DEFAULTS.max_texts, LIMITS, "texts per request", ge=1)
    waiting: int = setting(DEFAULTS.waiting, LIMITS, "requests that wait; more are told to come back", ge=1)
    batch_size: int = setting(DEFAULTS.batch_size, LIMITS, "texts that advance together", ge=1)
    cache: int = setting(DEFAULTS.cache_bytes >> 20, LIMITS, "MiB for what was read of contexts and system prompts "
                         "that come again; 0 for none", ge=0, le=1 << 20)
    kv_memory: int = setting(DEFAULTS.running_bytes >> 20, LIMITS, "MiB for keys and values of running texts; others "
                             "wait", ge=1, le=1 << 20)
    request_seconds: Optional[float] = setting(DEFAULTS.request_seconds, LIMITS, "time for a request, waiting "
                                               "included; none for no limit", gt=0)
    drain_seconds: float = setting(DEFAULTS.drain_seconds, LIMITS, "time that running requests have to end when the "
                                   "server is stopped", ge=0)

    log_texts: bool = setting(False, "Log", "write prompts and answers to the log, too")

    def conflicts(self):
        yield from super().conflicts()
        if self.api_key is not None and self.api_key_file is not None:
            yield Problem(("api_key", "api_key_file"), "cannot be given together with --api-key-file; leave one out")
        if self.without_key and (self.api_key is not None or self.api_key_file is not None):
            yield Problem(("without_key",), "cannot be given together with a key; leave one of the two out")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "serve", help="an API and a page in the browser",
        usage="jittor-lora serve [--base B] [--adapter [NAME=]DIR]... [any flag below]",
        description="Serve a base, and each adapter beside it, by OpenAI's API and on a page in the browser. Only this "
                    "machine may ask, unless --host and a key say otherwise. Ctrl-C, or SIGTERM, lets running answers "
                    "end; a second one ends at once.")
    add_flags(parser, ServeOptions)
    groups = {group.title: group for group in parser._action_groups}
    for title, name, metavar, kind, text in (
            (MODEL, "adapter", "[NAME=]DIR", named_path_argument, "adapter folder, run folder, or a folder of several, "
             "and the name that requests call it by: by default the folder's"),
            (MODEL, "adapters-from", "DIR", home_expanded, "adapters in this folder may be loaded while the server "
             "runs"),
            (ACCESS, "allowed-host", "NAME", str, "also answer under this name, such as a proxy's"),
            (ACCESS, "cors", "ORIGIN", str, "let pages of this origin ask, such as https://example.org")):
        groups[title].add_argument(f"--{name}", metavar=metavar, type=kind, nargs="+", action="extend", default=[],
                                   help=text + "; several, or again")


def run(args: argparse.Namespace) -> int:
    options = from_flags(args, ServeOptions)
    settings = _settings(options, args)
    adapters = named_adapters(args.adapter)
    _require_packages()
    sources = _opened(adapters)
    from jittor_lora.formats.base_record import base_of_adapter
    from jittor_lora.serving.start import serve
    base = options.base or (base_of_adapter(sources[0][1]) if sources else "auto")
    serve(base, sources, settings, options.precision, options.set_threads, options.browser, options.base_precision)
    return 0


def _require_packages() -> None:
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(str(error))
    if missing:
        raise UserError(f"serve needs packages that are not installed ({'; '.join(missing)}). Install them: {INSTALL}")


def _opened(adapters: Sequence[tuple[str, Path]]) -> list[tuple[str, AdapterSource]]:
    """
    Raises:
        UserError: settings of adapters cannot be read; all are listed.
    """
    from jittor_lora.formats.adapter_source import open_adapter
    opened, wrong = [], []
    for name, folder in adapters:
        try:
            opened.append((name, open_adapter(folder)))
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return opened


def _settings(options: ServeOptions, args: argparse.Namespace) -> ServeSettings:
    """
    Raises:
        UserError: values that `ServeOptions` does not check, all at once.
    """
    wrong = []
    for name in args.allowed_host:
        found = host_and_port(name)
        if found is None or found[1] is not None:
            wrong.append(f"--allowed-host {name}: expected a name or an address without a port, such as example.org.")
    wrong += [f"--cors {text}: expected an origin: scheme, host and port alone, such as https://example.org."
              for text in args.cors if origin_of(text) is None]
    folders = [("--adapters-from", path) for path in args.adapters_from]
    if options.runs is not None:
        folders.append(("--runs", options.runs))
    wrong += [f"{name} {path}: {'expected a folder; found a file' if Path(path).exists() else 'no such folder'}."
              for name, path in folders if not Path(path).is_dir()]
    key, problem = None, None
    try:
        key, problem = _key(options)
    except UserError as error:
        problem = str(error)
    if problem is None and key is None and not options.without_key and not is_loopback(options.host.strip("[]")):
        problem = (f"--host {options.host}: other machines could use this server. Give a key, as {KEY_VARIABLE} or in "
                   "a file with --api-key-file; or --without-key if nobody else reaches it.")
    wrong += [problem] if problem else []
    if wrong:
        raise UserError("\n".join(wrong))
    return ServeSettings(
        host=options.host.strip("[]"), port=options.port, api_key=key,
        allowed_hosts=tuple(host_and_port(name)[0] for name in args.allowed_host),
        cors_origins=tuple(text.lower() for text in args.cors), max_body_bytes=options.max_body << 20,
        max_prompt_tokens=options.max_prompt_tokens, max_tokens=options.max_tokens, max_texts=options.max_texts,
        waiting=options.waiting, batch_size=options.batch_size, cache_bytes=options.cache << 20,
        running_bytes=options.kv_memory << 20,
        request_seconds=options.request_seconds, runs=None if options.runs is None else Path(options.runs),
        adapter_folders=tuple(map(Path, args.adapters_from)), drain_seconds=options.drain_seconds,
        log_texts=options.log_texts)


def _key(options: ServeOptions) -> tuple[Optional[str], Optional[str]]:
    """The key, and what is wrong with it."""
    from jittor_lora.system.runtime import environment
    if options.api_key_file is not None:
        key, where = read_input(options.api_key_file, LARGEST_KEY_FILE).decode("latin-1").strip(), "--api-key-file"
    elif options.api_key is not None:
        key, where = options.api_key, "--api-key"
    elif not options.without_key and KEY_VARIABLE in environment():
        key, where = environment()[KEY_VARIABLE], KEY_VARIABLE
    else:
        return None, None
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        return None, (f"{where}: expected a key of at least {SHORTEST_KEY} letters, digits and signs without spaces. "
                      "Make one with: openssl rand -hex 24")
    return key, None


