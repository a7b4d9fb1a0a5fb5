"""The exception of a request that gets no reward by no fault of its text: no model, no room, no time."""

from __future__ import annotations

from rewardproof.errors import RewardproofError


class Refused(RewardproofError):
    """Raised when a server does not answer with a reward."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        """Keep the status and the seconds after which to come back."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
