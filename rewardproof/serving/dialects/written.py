"""What trainers have in common that send a policy's own text, prompt and answer together with their special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from rewardproof.serving.answering import Desk
from rewardproof.serving.served import Rewards, Served


async def rewards_of_texts(
    desk: Desk, request: Request, served: Served, texts: Sequence[str], *, prompts: Sequence[str] | None = None, close: bool = True
) -> list[Rewards]:
    """Rewards of written texts, one group each; arguments as of `Served.written`."""
    return await desk.rewards(request, served, len(texts), lambda: served.written(texts, prompts, close=close))
