"""The token of a job: sent with each request, renewed after half its life, given up if refused."""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from asyncjobs.client.answers import origin_of, renewed_token
from asyncjobs.client.exchange import ActionResult, Answered, Ask
from asyncjobs.client.tokens import JobToken

# After a failed renewal. The token may last until the server is back.
_PAUSE = 30.0
_TIMEOUT = 30.0
_LEAST_PAUSE = 1.0
_MAX_REFUSALS = 1


class Credential:
    """The token of one job, shared by all who follow it; it has no clock.

    Without a token, the caller's HTTP client has the only credentials. `received` is the time at
    which the token was received.
    """

    def __init__(self, token: JobToken | None, received: float) -> None:
        self._token = token
        self._renew_at = inf if token is None else received + token.lifetime / 2
        self._refusals = 0

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the header with the token for a URL of the server that gave it."""
        if self._token is None or origin_of(url) != origin_of(self._token.url):
            return {}
        return {"authorization": f"Bearer {self._token.text}"}

    def is_due(self, now: float) -> bool:
        """Return whether the token should be renewed."""
        return now >= self._renew_at

    def renewal(self, now: float, origins: Collection[str]) -> Ask | None:
        """Return the request that renews the token if it is due; its result goes to `receive`."""
        if self._token is None or not self.is_due(now):
            return None
        headers = {"accept": "application/json", **self.headers_for(self._token.url)}
        url = self._token.url
        return Ask("POST", url, headers, timeout=_TIMEOUT, total=_TIMEOUT, origins=origins)

    def receive(self, result: ActionResult, now: float) -> None:
        """Take the result of a renewal."""
        if self._token is None:
            return
        renewed = renewed_token(result, self._token) if isinstance(result, Answered) else None
        if renewed is not None:
            self._token = renewed
            self._renew_at = now + max(renewed.lifetime / 2, _LEAST_PAUSE)
        elif self._refusals or (isinstance(result, Answered) and result.status in {401, 403, 404}):
            self._give_up()
        else:
            self._renew_at = now + _PAUSE

    def refuse(self, status: int, now: float) -> bool:
        """Return whether to send a request again after an answer with this status.

        A token that was refused is renewed at once, or else given up: the caller may have other
        credentials.
        """
        if status != 401:
            self._refusals = 0
        if status != 401 or self._token is None:
            return False
        self._refusals += 1
        if self._refusals > _MAX_REFUSALS:
            self._give_up()
        else:
            self._renew_at = now
        return True

    def _give_up(self) -> None:
        self._token, self._renew_at = None, inf
