"""POST /v1/completions: prompts to continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from fastapi import APIRouter, Request, Response

from jittor_lora.data.text_file import shown
from jittor_lora.inference.generator import Decoding, Group
from jittor_lora.serving.api.choices import Choices, stream_options
from jittor_lora.serving.api.completion_schema import Completion, CompletionRequest
from jittor_lora.serving.api.fields import stop_of
from jittor_lora.serving.api.json_body import JsonRoute
from jittor_lora.serving.api.openai_errors import RESPONSES, ApiError
from jittor_lora.serving.api.streaming import EVENTS, unless_gone
from jittor_lora.serving.api.token_texts import Offsets, finite
from jittor_lora.serving.compute.jobs import End, Generation, Piece, PromptTokens, Token
from jittor_lora.serving.service import Service

NAMES = ("text_completion", "text_completion")


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["OpenAI"], responses=RESPONSES)

    @routes.post("/v1/completions", responses={200: {"model": Completion, "content": EVENTS}})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue one or several prompts."""
        return await unless_gone(request, _Completions(service, body).respond())

    return routes


class _Completions(Choices):
    def __init__(self, service: Service, body: CompletionRequest):
        super().__init__(service, service.served(body.model), "cmpl", NAMES, stream_options(body))
        self.body = body
        service.check_texts(len(body.prompt) * body.n, "n times the number of prompts")
        service.check_new_tokens(body.max_tokens)
        if body.best_of not in (None, body.n):
            raise ApiError(400, f"best_of: expected {body.n}, as n; found {body.best_of}. Others are not supported.",
                           "best_of")
        self.choices = [_Choice(self, index) for index in range(len(body.prompt) * body.n)]

    def job(self) -> Generation:
        body, generator = self.body, self.served.generator
        groups = self._groups()
        self.service.check_prompts(groups, "prompt")
        if body.logprobs is not None:
            self.served.texts.prepare()
        decoding = Decoding(body.max_tokens, body.sampling(), stop_of(body.stop))
        return Generation(generator, self.served.adapter, groups, decoding, body.n, False, body.logprobs, body.echo)

    def prompt(self, index: int) -> str:
        """That of a text."""
        prompt = self.body.prompt[index // self.body.n]
        return prompt if isinstance(prompt, str) else self.served.generator.tokenizer.decode(prompt)

    @property
    def opening(self) -> int:
        """The number of tokens at the start of each prompt that stand for none of its text."""
        return len(self.served.generator.tokenizer.opening) if isinstance(self.body.prompt[0], str) else 0

    def _groups(self) -> Sequence[Group]:
        prompts, generator = self.body.prompt, self.served.generator
        if isinstance(prompts[0], str):
            return generator.groups([(None, text) for text in prompts])
        most = generator.model.config.vocab_size
        strange = next((token for ids in prompts for token in ids if token >= most), None)
        if strange is not None:
            raise ApiError(400, f"prompt: expected token ids from 0 to {most - 1:,}; found {shown(strange)}.", "prompt")
        return [(ids[:-1], [ids[-1:]]) for ids in prompts]


class _Choice:
    def __init__(self, request: _Completions, index: int):
        self._request, self._index = request, index
        self._texts: list[str] = []
        self._parts: list[dict[str, list]] = []
        self._reason: Optional[str] = None
        self._offsets = Offsets()

    def add(self, event: PromptTokens | Piece | End) -> dict[str, Any]:
        text, logprobs = "", None
        if isinstance(event, End):
            self._reason = event.reason
        else:
            echoed = isinstance(event, PromptTokens)
            text = self._request.prompt(self._index) if echoed else event.text
            self._texts.append(text)
            if self._request.body.logprobs is not None:
                logprobs = self._logprobs(event.tokens, self._request.opening if echoed else 0)
                self._parts.append(logprobs)
            if echoed:
                self._offsets = Offsets(len(text))
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": self._reason}

    def whole(self) -> dict[str, Any]:
        joined = None
        if self._request.body.logprobs is not None:
            joined = {name: [value for part in self._parts for value in part[name]]
                      for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        return {"index": self._index, "text": "".join(self._texts), "logprobs": joined, "finish_reason": self._reason}

    def _logprobs(self, tokens: Sequence[Token], hidden: int) -> dict[str, list]:
        """
        Args:
            hidden: number of tokens at the start that the text does not show.
        """
        texts = self._request.served.texts
        return {"tokens": [texts.text(token.id) for token in tokens],
                "token_logprobs": [finite(token.log_probability) for token in tokens],
                "top_logprobs": [None if token.log_probability is None else self._likeliest(token) for token in tokens],
                "text_offset": [self._offsets.add(b"" if place < hidden else texts.bytes(token.id))
                                for place, token in enumerate(tokens)]}

    def _likeliest(self, token: Token) -> dict[str, float]:
        """Of tokens with the same text the likeliest counts."""
        found: dict[str, float] = {}
        for number, log_probability in (*token.likeliest, (token.id, token.log_probability)):
            found.setdefault(self._request.served.texts.text(number), finite(log_probability))
        return found
