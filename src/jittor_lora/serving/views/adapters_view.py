"""GET /ui/adapters and /ui/adapters/difference: what is loaded and what can be, for the page."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Optional, TypeVar
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.base_record import read_record
from jittor_lora.formats.peft_config import peft_settings
from jittor_lora.lora.adapter import Adapter
from jittor_lora.serving.api.openai_errors import RESPONSES, ApiError
from jittor_lora.serving.api.plain import shown, shown_text
from jittor_lora.serving.models import LONGEST_NAME, Served
from jittor_lora.serving.service import Service
from jittor_lora.serving.views.adapter_norms import Arrays, copied, differences, norms
from jittor_lora.serving.views.adapters_schema import AdapterDifference, AdapterList, AvailableAdapter, LoadedAdapter
from jittor_lora.tasks.adapter import in_use
from jittor_lora.tasks.lora_settings import adapter_line

MOST = 200  # of the adapters that can be loaded
VARIANTS = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
T = TypeVar("T")


def router(service: Service) -> APIRouter:
    routes, view = APIRouter(tags=["page"], responses=RESPONSES), AdapterView(service)

    @routes.get("/ui/adapters", response_model=AdapterList)
    async def adapters() -> JSONResponse:
        """The adapters that are loaded, with the norms of their updates, and those that can be."""
        return await view.listing()

    @routes.get("/ui/adapters/difference", response_model=AdapterDifference)
    async def difference(first: str = Query(max_length=LONGEST_NAME),
                         second: str = Query(max_length=LONGEST_NAME)) -> JSONResponse:
        """How the updates of two loaded adapters differ, by module."""
        return await view.difference(first, second)

    return routes


class AdapterView:
    """What the page is told of adapters. Arrays are copied in the thread that computes, and measured, once per adapter,
    in one that reads files."""

    def __init__(self, service: Service):
        self._service, self._thread = service, ThreadPoolExecutor(1, "adapters")
        self._measured: WeakKeyDictionary[Served, LoadedAdapter] = WeakKeyDictionary()
        self._read: dict[Path, tuple[Any, AvailableAdapter]] = {}

    async def listing(self) -> JSONResponse:
        service, loaded = self._service, []
        for served in self._adapters():
            if served not in self._measured:
                adapter = service.session.adapters[served.adapter]
                arrays = await self._copied(served)
                if arrays is None:  # unloaded meanwhile
                    continue
                self._measured[served] = await self._in_thread(partial(self._loaded, served, adapter, arrays))
            loaded.append(self._measured[served])
        return await self._in_thread(lambda: _answer(self._list(loaded)))

    async def difference(self, first: str, second: str) -> JSONResponse:
        """
        Raises:
            ApiError: one is not loaded.
        """
        arrays = []
        for field_name, name in (("first", first), ("second", second)):
            served = next((one for one in self._adapters() if one.name == name), None)
            found = None if served is None else await self._copied(served)
            if found is None:
                raise ApiError(404, f"{field_name}: no adapter of this name is loaded.", field_name)
            arrays.append(found)
        return await self._in_thread(lambda: _answer(AdapterDifference(first, second, differences(*arrays))))

    def _adapters(self) -> list[Served]:
        return [served for served in self._service.models.values() if served.adapter is not None]

    async def _copied(self, served: Served) -> Optional[dict[str, Arrays]]:
        def copy() -> Optional[dict[str, Arrays]]:
            adapters = self._service.session.adapters
            return copied(adapters[served.adapter]) if served.adapter in adapters else None

        return await asyncio.wrap_future(self._service.engine.call(copy))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _loaded(self, served: Served, adapter: Adapter, arrays: dict[str, Arrays]) -> LoadedAdapter:
        config, rows, count = adapter.config, norms(arrays), adapter.count()
        variants = [text for name, text in VARIANTS.items() if getattr(config, name)]
        variants += [config.init] if config.changes_base else []
        targets, family = config.target_modules, self._service.session.model.config.family
        settings = dict(in_use(peft_settings(config, "", family)))
        return LoadedAdapter(
            served.name, self._shown(served.folder), served.created, ", ".join(variants) or "LoRA",
            adapter_line(config), config.r, config.alpha, config.dropout,
            targets if isinstance(targets, str) else list(targets), count, 4 * count,
            [name for name in adapter.versions if name not in arrays], shown(settings),
            *(math.hypot(*(getattr(row, part) for row in rows)) for part in ("a", "b", "update")), rows)

    def _list(self, loaded: list[LoadedAdapter]) -> AdapterList:
        names: dict[Path, list[str]] = {}
        paths = list(filter(_is_utf8, self._service.listing.paths()))
        for served in self._adapters():
            names.setdefault(served.folder.absolute(), []).append(served.name)
        self._read = {path: found for path, found in self._read.items() if path in paths}
        available = [self._available(path, names.get(path.absolute(), [])) for path in paths[:MOST]]
        return AdapterList(self._service.models.base, loaded, available, max(0, len(paths) - MOST))

    def _available(self, path: Path, loaded: list[str]) -> AvailableAdapter:
        stamp = sorted((entry.name, entry.lstat().st_mtime_ns, entry.lstat().st_size) for entry in path.iterdir()) \
            if path.is_dir() else None
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = stamp, self._opened(path)
        found = self._read[path][1]
        found.loaded = loaded
        return found

    def _opened(self, path: Path) -> AvailableAdapter:
        found = AvailableAdapter(str(path), self._shown(path))
        try:
            adapter, record = read_adapter_folder(path, numbers=False), read_record(path)
        except (UserError, OSError) as error:
            found.problem = shown_text(str(error).replace(str(path), found.folder))
            return found
        settings = adapter.settings
        found.base = shown_text(settings.get("base_model_name_or_path"))
        found.targets = shown(settings.get("target_modules"))
        found.rank, found.alpha = settings.get("r"), settings.get("lora_alpha")
        found.parameters, found.bytes = adapter.parameters, adapter.bytes
        if record is not None and self._service.session.fingerprint:
            found.of_this_base = record.fingerprint == self._service.session.fingerprint
        return found

    def _shown(self, path: Path) -> str:
        """The path below the folder that the server was given."""
        above = next((one for one in self._service.listing.folders if one in path.parents), path.parent)
        return str(shown_text(path.relative_to(above.parent if above.name else above).as_posix()))


def _is_utf8(path: Path) -> bool:
    """Paths that are not cannot be named in a request."""
    return shown_text(str(path)) == str(path)


def _answer(value: Any) -> JSONResponse:
    return JSONResponse(asdict(value), headers={"Cache-Control": "no-store"})
