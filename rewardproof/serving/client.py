"""An asynchronous client of `/score`: many requests at a time over few connections, failures that may pass are tried again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rewardproof.data.endpoint import seconds_asked_for
from rewardproof.data.group import Group
from rewardproof.errors import EvaluationError, MissingExtraError
from rewardproof.scoring.remote import checked_rewards, group_body
from rewardproof.scoring.sources import TOKEN

if TYPE_CHECKING:
    import httpx


class RewardClient:
    """Asks a server for rewards.

    Example:
        >>> async with RewardClient("http://127.0.0.1:8000/score") as client:      # doctest: +SKIP
        ...     rewards = await client.score(groups)
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        model: str = "",
        timeout: float = 180.0,
        attempts: int = 5,
        wait: float = 0.5,
        connections: int = 64,
    ) -> None:
        """Name the server.

        Args:
            address: `http://…` or `https://…`, the path included.
            token: Sent as bearer token; what `REWARDPROOF_TOKEN` says where nothing is given.
            model: Which of the server's models; empty for its first.
            timeout: Seconds to wait for an answer.
            attempts: Requests for one answer, at most.
            wait: Seconds before the second attempt; each further one waits twice as long, or as long as the server asks for.
            connections: Open at a time.

        Raises:
            MissingExtraError: httpx is not installed.
        """
        self.address = address
        self.model = model
        self.attempts = attempts
        self.wait = wait
        self.retries = 0
        httpx, token = _httpx(), token or os.environ.get(TOKEN, "")
        self._failures: tuple[type[Exception], ...] = (httpx.TransportError, ValueError)
        self._client: httpx.AsyncClient = httpx.AsyncClient(
            timeout=timeout,
            limits=httpx.Limits(max_connections=connections),
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )

    async def __aenter__(self) -> RewardClient:
        """The client."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close its connections."""
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def score(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """Score every answer of every group, in order.

        Raises:
            EvaluationError: No attempt brought a finite score for every answer; the message has the last one's reason.
        """
        body: dict[str, Any] = {"groups": [group_body(group) for group in groups]} | ({"model": self.model} if self.model else {})
        reason, asked = "", 0.0
        for attempt in range(self.attempts):
            if attempt:
                self.retries += 1
                await asyncio.sleep(max(self.wait * 2 ** (attempt - 1), asked))
            try:
                found = await self._client.post(self.address, json=body)
                if found.is_success:
                    return checked_rewards(found.json(), groups)
            except self._failures as error:
                reason, asked = str(error) or type(error).__name__, 0.0
                continue
            reason, asked = f"HTTP status {found.status_code}", seconds_asked_for(found.headers.get("Retry-After"))
            if found.status_code < 500 and found.status_code not in (408, 429):
                reason += f", {found.text[:500]}"
                break
        raise EvaluationError(
            f"{self.address} gave no scores for {len(groups)} groups: {reason}. Expected a finite score for every answer: a policy would "
            "learn from holes. See to the server, then go on."
        )


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError(
            "RewardClient needs httpx, which is not installed; install it with: pip install 'rewardproof[serve]'"
        ) from error
    return httpx
