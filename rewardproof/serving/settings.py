"""What a server takes at most, so that one client cannot take it from the others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewardproof.config import Section


class Limits(Section):
    """Sizes, waits and room of a server."""

    body_mb: Annotated[float, Field(gt=0)] = 8.0
    """Largest body of a request, in millions of bytes; beyond it the answer is 413."""
    texts: Annotated[int, Field(ge=1, le=65536)] = 1024
    """Most texts of one request: answers of all its groups together."""
    max_length: Annotated[int, Field(ge=1)] = 16384
    """Longest text in tokens, prompt included; a model that has fewer positions takes as many as it has."""
    tokens: Annotated[int, Field(ge=1)] = 131072
    """Most tokens of one request, prompts that its answers share counted once."""
    waiting: Annotated[int, Field(ge=1)] = 4096
    """Most texts that wait for the model, of all requests together; beyond it the answer is 429 and says when to come back."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which a request that has no answer gets 503, a body that has not arrived 408, and one with no whole head nothing."""
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Tokens, beginnings that requests share counted once, from which on no further request is scored together with those there are."""
    linger_ms: Annotated[float, Field(ge=0)] = 2.0
    """Milliseconds that a batch with room left waits for further requests at least; the longer scoring takes, the longer it may wait."""
    connections: Annotated[int, Field(ge=1)] = 1024
    """Most connections at a time; beyond it the answer is 503."""
    drain: Annotated[int, Field(ge=1)] = 60
    """Seconds that a server which was told to stop takes at most to answer what it has."""
