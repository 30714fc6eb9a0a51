"""Fields of requests that several endpoints share."""

from __future__ import annotations

import json
import secrets
import sys
from typing import Any, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Annotated

from jittor_lora.data.text_file import shown
from jittor_lora.inference.sampling import Sampling
from jittor_lora.serving.api.openai_errors import EXPECTED

LARGEST = (1 << 31) - 1
MOST_STOPS, LONGEST_STOP = 16, 1_000  # OpenAI takes 4; characters
MOST_LIKELIEST = 20
SEEDS = 1 << 63


class Body(BaseModel):
    """A request: unknown fields and values of another type are refused; null is as if the field were left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value is not None} if isinstance(
            values, dict) else values


def wrong(expected: str, found: Any) -> PydanticCustomError:
    """What a validator raises."""
    text = f"expected {expected}; found {shown(found)}"
    return PydanticCustomError(EXPECTED, "{text}", {"text": text})


def only(*values: Any) -> Any:
    """The type of a field that is not supported: it may have a value that changes nothing."""
    words = ", ".join(json.dumps(value) for value in values)

    def check(value: Any) -> Any:
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            raise wrong(f"{words} or nothing, as it is not supported" if values else "nothing, as it is not supported",
                        value)
        return value

    return Annotated[Any, PlainValidator(check), WithJsonSchema({"enum": [*values, None]})]


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and len(texts) <= MOST_STOPS
            and all(isinstance(text, str) and 0 < len(text) <= LONGEST_STOP for text in texts)):
        raise wrong(f"a text, or up to {MOST_STOPS} of them, of 1 to {LONGEST_STOP:,} characters", value)
    return tuple(texts)


_STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
Stop = Annotated[Any, PlainValidator(_stop), WithJsonSchema(
    {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MOST_STOPS}, {"type": "null"}]})]


def stop_of(texts: tuple[str, ...]) -> Union[None, str, tuple[str, ...]]:
    """As `Decoding` takes it."""
    return texts[0] if len(texts) == 1 else texts or None


class SamplingFields(Body):
    """How tokens are chosen: OpenAI's fields, and vLLM's."""

    temperature: Optional[float] = Field(1.0, ge=0, le=100)
    top_p: Optional[float] = Field(1.0, gt=0, le=1)
    top_k: Optional[int] = Field(0, ge=-1, le=LARGEST, description="0 or -1 for all tokens")
    min_p: Optional[float] = Field(0.0, ge=0, le=1)
    repetition_penalty: Optional[float] = Field(1.0, ge=0.01, le=100)
    no_repeat_ngram_size: Optional[int] = Field(0, ge=0, le=LARGEST)
    min_tokens: Optional[int] = Field(0, ge=0, le=LARGEST)
    seed: Optional[int] = Field(None, ge=-SEEDS, lt=SEEDS, description="by default another one for each request")

    def sampling(self) -> Sampling:
        # A temperature that is subnormal would be 0 in the middle of a division.
        temperature = 0.0 if self.temperature < sys.float_info.min else self.temperature
        seed = secrets.randbits(32) if self.seed is None else self.seed % (2 * SEEDS)
        return Sampling(temperature=temperature, top_k=max(self.top_k, 0), top_p=self.top_p, min_p=self.min_p,
                        repetition_penalty=self.repetition_penalty, no_repeat_ngram=self.no_repeat_ngram_size,
                        min_new_tokens=self.min_tokens, seed=seed)


class StreamOptions(Body):
    include_usage: Optional[bool] = False
    include_obfuscation: Optional[bool] = Field(False, description="has no effect")


class Neutral(Body):
    """OpenAI's fields without a meaning here, and those that are not supported."""

    user: Optional[str] = None
    metadata: Optional[dict[str, Any]] = None
    safety_identifier: Optional[str] = None
    prompt_cache_key: Optional[str] = None
    store: Optional[bool] = None
    service_tier: only("auto", "default") = None
    presence_penalty: only(0) = None
    frequency_penalty: only(0) = None
    logit_bias: only({}) = None
