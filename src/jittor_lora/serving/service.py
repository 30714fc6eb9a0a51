"""What all endpoints are given: the models, the engine, the thread that encodes, and the limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from jittor_lora.errors import UserError
from jittor_lora.inference.generator import Group
from jittor_lora.serving.adapter_listing import Listing
from jittor_lora.serving.api.openai_errors import ApiError, not_taken, refused
from jittor_lora.serving.api.streaming import Run
from jittor_lora.serving.compute.engine import Engine
from jittor_lora.serving.compute.jobs import Busy, Job
from jittor_lora.serving.models import Models, Served
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.session import Session

T = TypeVar("T")


class Service:
    """
    Attributes:
        started: in seconds since 1970.
    """

    def __init__(self, session: Session, engine: Engine, models: Models, settings: ServeSettings):
        self.session, self.engine, self.models, self.settings = session, engine, models, settings
        self.started = time.time()
        self.listing = Listing(settings.adapter_folders)
        self._encoding = ThreadPoolExecutor(1, "encoding")
        self._in_encoding = 0

    @property
    def positions(self) -> int:
        """Of the model: most tokens of a prompt and its continuation, but for the last."""
        return self.session.model.config.max_positions

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return min(self.positions, self.settings.max_prompt_tokens or self.positions)

    def served(self, name: str) -> Served:
        """
        Raises:
            ApiError: no model has this name.
        """
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(self.models)
            raise ApiError(404, f"model: expected one of {known}; found {quoted(name)}.", "model",
                           "model_not_found") from None

    async def encode(self, function: Callable[[], T]) -> T:
        """Call a function in the thread that encodes texts and reads files.

        Raises:
            ApiError: too many wait for it, or the function raises a `UserError`.
        """
        if self._in_encoding >= self.settings.waiting:
            raise not_taken(Busy(1))
        self._in_encoding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoding, function)
        except UserError as error:
            raise refused(error) from error
        finally:
            self._in_encoding -= 1

    async def begin(self, models: Sequence[Served], jobs: Callable[[], Sequence[Job]]) -> Run:
        """Encode jobs for these models and put them into the engine's queue.

        Args:
            jobs: called in the thread that encodes.

        Raises:
            ApiError: a text cannot be encoded, there are too many requests, or a model was unloaded meanwhile.
        """
        encoded = await self.encode(jobs)
        for served in models:
            if self.models.get(served.name) is not served:
                self.served(served.name)
                raise ApiError(404, f"model: {served.name} was loaded anew meanwhile. Ask again.", "model",
                               "model_not_found")
        return Run(self.engine, encoded)

    def check_prompts(self, groups: Sequence[Group], field: str) -> None:
        """
        Raises:
            ApiError: a prompt is empty or has too many tokens.
        """
        lengths = [len(prefix) + len(prompt) for prefix, prompts in groups for prompt in prompts]
        if min(lengths) < 1 or any(not prompt for _, prompts in groups for prompt in prompts):
            raise ApiError(400, f"{field}: expected at least one token; found none.", field)
        if max(lengths) > self.longest_prompt:
            raise ApiError(400, f"{field}: expected at most {self.longest_prompt:,} tokens; found {max(lengths):,}. "
                                "Shorten it.", field, "context_length_exceeded")

    def check_texts(self, count: int, fields: str) -> None:
        """
        Raises:
            ApiError: more texts than a request may ask for.
        """
        if count > self.settings.max_texts:
            raise ApiError(400, f"{fields}: expected at most {self.settings.max_texts} texts; found {count:,}.",
                           fields.split()[0])

    def check_new_tokens(self, count: int, field: str = "max_tokens") -> None:
        """
        Raises:
            ApiError: more tokens than a text may have.
        """
        if count > self.settings.max_tokens:
            raise ApiError(400, f"{field}: expected at most {self.settings.max_tokens:,}; found {count:,}.", field)

    async def load_adapter(self, name: str, path: str) -> Served:
        """Load one of the adapters in the allowed folders, while the engine goes on.

        Raises:
            ApiError: there is none of this path, or `Models.load` refuses it.
        """
        source = await self.encode(partial(self.listing.find, path))
        return await self._computed(self.engine.call(partial(self.models.load, name, source)))

    async def unload_adapter(self, name: str) -> None:
        """Take an adapter off the list, and out of the network once the last request for it has ended.

        Raises:
            ApiError: there is none of this name.
        """
        if name not in self.models:
            raise ApiError(404, f"lora_name: {quoted(name)} is not loaded.", "lora_name")
        served = await self._computed(self.engine.call(partial(self.models.retire, name)))
        await self._computed(self.engine.retire(served.adapter, partial(self.models.delete, served)))

    def close(self) -> None:
        """Let the thread that encodes end."""
        self._encoding.shutdown(wait=False)

    async def _computed(self, future: Future) -> Any:
        """The result of a call in the thread that computes."""
        try:  # shielded: once taken, it is done whether the client waits or not
            return await asyncio.shield(asyncio.wrap_future(future))
        except UserError as error:
            raise refused(error, "lora_name") from error


def quoted(text: str) -> str:
    """What a request holds, for a message."""
    return json.dumps(text if len(text) <= 80 else text[:79] + "…", ensure_ascii=False)
