"""vLLM's `/classify` and `/pooling`, and SGLang's `/v1/embeddings`: what verl asks of them, and clients written for either."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field, model_validator
from starlette.requests import Request

from rewardproof.data.group import Group
from rewardproof.serving.answering import Desk, desk_of
from rewardproof.serving.bodies import MOST, MOST_IDS, FirstFault
from rewardproof.serving.dialects.groups import Turn, messages
from rewardproof.serving.dialects.written import rewards_of_texts
from rewardproof.serving.served import Rewards, Served

router = APIRouter()
Ids = Annotated[list[int], Field(min_length=1, max_length=MOST_IDS), FirstFault()]
Texts = Annotated[list[str], Field(max_length=MOST), FirstFault()]
Rows = Annotated[list[Ids], Field(max_length=MOST), FirstFault()]


class InputBody(BaseModel):
    """Texts as they are to be read, token ids, or a conversation."""

    model: str = ""
    """Which of the server's models; where it has one, it answers to every name."""
    input: str | Ids | Texts | Rows | None = None
    """Texts that the chat template has written already, or token ids; nothing is put at their end."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST), FirstFault()] | None = None
    """A conversation instead, which the chat template writes."""
    use_activation: bool | None = None
    """Not used: the reward is what a regression gives, with or without."""
    encoding_format: Literal["float", "base64"] = "float"
    """Of `/pooling` and `/v1/embeddings`: numbers, or the bytes of float32 numbers in base64."""

    @model_validator(mode="after")
    def _one_of_two(self) -> InputBody:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected either input or messages")
        return self


class Usage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classified(BaseModel):
    """The reward of one text."""

    index: int
    label: str = "LABEL_0"
    probs: list[float]
    """The reward as it is, no probability."""
    num_classes: int = 1


class ClassifyReply(BaseModel):
    """What vLLM answers."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class Pooled(BaseModel):
    """The reward of one text."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class PoolingReply(BaseModel):
    """What vLLM answers."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


class Embedded(BaseModel):
    """The reward of one text."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingsReply(BaseModel):
    """What SGLang answers."""

    object: Literal["list"] = "list"
    data: list[Embedded]
    model: str
    usage: Usage


async def _rewards(body: InputBody, request: Request, desk: Desk) -> tuple[Served, list[Rewards]]:
    served = desk.model(request, body.model, any_name=True)
    if body.messages is not None:
        *prompt, answer = messages(body.messages, "user")
        group = Group(tuple(prompt), ((answer,),))
        return served, await desk.rewards(request, served, 1, lambda: served.encode([group]))
    given = [body.input] if isinstance(body.input, str) else body.input or []
    texts = [one for one in given if isinstance(one, str)]
    if len(texts) == len(given):
        return served, await rewards_of_texts(desk, request, served, texts, close=False)
    rows = [one for one in given if isinstance(one, list)] or [[one for one in given if isinstance(one, int)]]
    return served, await desk.rewards(request, served, len(rows), lambda: served.within_limits(served.texts.of_ids(rows)))


def _usage(found: list[Rewards]) -> Usage:
    tokens = sum(sum(one.tokens) for one in found)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)


def _in(encoding: str, values: tuple[float, ...]) -> list[float] | str:
    return list(values) if encoding == "float" else base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


@router.post("/classify")
async def classify(body: InputBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> ClassifyReply:
    """The raw reward of each text in `data[i].probs[0]`."""
    served, found = await _rewards(body, request, desk)
    data = [Classified(index=place, probs=list(one.values)) for place, one in enumerate(found)]
    return ClassifyReply(id=_id("classify"), created=int(time.time()), model=served.name, data=data, usage=_usage(found))


@router.post("/pooling")
async def pooling(body: InputBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> PoolingReply:
    """The raw reward of each text in `data[i].data[0]`."""
    served, found = await _rewards(body, request, desk)
    data = [Pooled(index=place, data=_in(body.encoding_format, one.values)) for place, one in enumerate(found)]
    return PoolingReply(id=_id("pool"), created=int(time.time()), model=served.name, data=data, usage=_usage(found))


@router.post("/v1/embeddings")
async def embeddings(body: InputBody, request: Request, desk: Annotated[Desk, Depends(desk_of)]) -> EmbeddingsReply:
    """The raw reward of each text in `data[i].embedding[0]`."""
    served, found = await _rewards(body, request, desk)
    data = [Embedded(embedding=_in(body.encoding_format, one.values), index=place) for place, one in enumerate(found)]
    return EmbeddingsReply(data=data, model=served.name, usage=_usage(found))
