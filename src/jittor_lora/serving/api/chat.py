"""POST /v1/chat/completions: the next turn of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from fastapi import APIRouter, Request, Response

from jittor_lora.data.conversations import USER, Turn
from jittor_lora.data.text_file import Offenders
from jittor_lora.data.turns import SUPPORTED, in_order, read_turns
from jittor_lora.errors import UserError
from jittor_lora.inference.generator import Decoding
from jittor_lora.serving.api.chat_schema import ChatCompletion, ChatRequest
from jittor_lora.serving.api.choices import Choices, stream_options
from jittor_lora.serving.api.fields import stop_of
from jittor_lora.serving.api.json_body import JsonRoute
from jittor_lora.serving.api.openai_errors import RESPONSES, ApiError, refused
from jittor_lora.serving.api.streaming import EVENTS, unless_gone
from jittor_lora.serving.api.token_texts import finite
from jittor_lora.serving.compute.jobs import End, Generation, Piece, PromptTokens, Token
from jittor_lora.serving.service import Service

NAMES = ("chat.completion", "chat.completion.chunk")


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["OpenAI"], responses=RESPONSES)

    @routes.post("/v1/chat/completions", responses={200: {"model": ChatCompletion, "content": EVENTS}})
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Say the assistant's next turn."""
        return await unless_gone(request, _Chat(service, body).respond())

    return routes


class _Chat(Choices):
    def __init__(self, service: Service, body: ChatRequest):
        super().__init__(service, service.served(body.model), "chatcmpl", NAMES, stream_options(body))
        self.body = body
        if self.served.chat is None:
            raise ApiError(400, f"model: {body.model} has no chat template, so conversations cannot be put to it. Send "
                                "prompts to /v1/completions, or name a model that has one.", "model")
        service.check_texts(body.n, "n")
        self._most = self._most_tokens()
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: expected logprobs to be true with it; found false.", "top_logprobs")
        self._turns = _turns(body)
        self.choices = [_Choice(self, index) for index in range(body.n)]

    def openings(self) -> Sequence[dict[str, Any]]:
        return [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
                for index in range(self.body.n)]

    def job(self) -> Generation:
        body, generator = self.body, self.served.chat
        try:
            groups = generator.chats([self._turns])
            _ = generator.chat.end_ids  # rendered here, not in the thread that computes
        except UserError as error:
            raise refused(error, "messages") from error
        self.service.check_prompts(groups, "messages")
        if body.logprobs:
            self.served.texts.prepare()
        decoding = Decoding(self._most, body.sampling(), stop_of(body.stop))
        return Generation(generator, self.served.adapter, groups, decoding, body.n, True,
                          (body.top_logprobs or 0) if body.logprobs else None)

    def _most_tokens(self) -> int:
        new, old = self.body.max_completion_tokens, self.body.max_tokens
        if None not in (new, old) and new != old:
            raise ApiError(400, f"max_completion_tokens: expected {old:,}, as max_tokens; found {new:,}. Leave out one "
                                "of the two.", "max_completion_tokens")
        field = "max_tokens" if new is None else "max_completion_tokens"
        given = new if old is None else old
        if given is None:
            return self.service.settings.max_tokens
        self.service.check_new_tokens(given, field)
        return given


class _Choice:
    def __init__(self, request: _Chat, index: int):
        self._request, self._index = request, index
        self._texts: list[str] = []
        self._tokens: list[dict[str, Any]] = []
        self._reason: Optional[str] = None

    def add(self, event: PromptTokens | Piece | End) -> dict[str, Any]:
        if isinstance(event, End):
            self._reason = event.reason
            return {"index": self._index, "delta": {}, "logprobs": None, "finish_reason": event.reason}
        self._texts.append(event.text)
        tokens = self._logprobs(event.tokens) if self._request.body.logprobs else []
        self._tokens += tokens
        return {"index": self._index, "delta": {"content": event.text}, "logprobs": self._content(tokens),
                "finish_reason": None}

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        return {"index": self._index, "message": message, "logprobs": self._content(self._tokens),
                "finish_reason": self._reason}

    def _content(self, tokens: list[dict[str, Any]]) -> Optional[dict[str, Any]]:
        return {"content": tokens, "refusal": None} if self._request.body.logprobs else None

    def _logprobs(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        return [{**self._token(token.id, token.log_probability),
                 "top_logprobs": [self._token(*likely) for likely in token.likeliest]} for token in tokens]

    def _token(self, number: int, log_probability: float) -> dict[str, Any]:
        texts = self._request.served.texts
        return {"token": texts.text(number), "logprob": finite(log_probability), "bytes": list(texts.bytes(number))}


def _turns(body: ChatRequest) -> tuple[Turn, ...]:
    """
    Raises:
        ApiError: the turns are empty, or not in the order of a conversation that an assistant is to go on with.
    """
    offenders = Offenders("messages")
    placed = read_turns([{"role": message.role, "content": message.content} for message in body.messages], "messages",
                        offenders)
    if placed is not None and in_order(placed, "messages", offenders) and placed[-1][1].role != USER:
        offenders.add(placed[-1][0], "a turn of the user at the end", placed[-1][1].role)
    try:
        offenders.check(SUPPORTED)
    except UserError as error:
        raise refused(error, "messages") from error
    return tuple(turn for _, turn in placed)
