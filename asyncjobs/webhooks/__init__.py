"""Webhooks (extra `webhooks`): POST the end of a job to another server, by Standard Webhooks.

    jobs = AsyncJobs("sqlite:///jobs.db", callbacks=Webhooks({"hooks.example.com": "whsec_..."}))

https://www.standardwebhooks.com is the standard; sections are those of its specification 1.0.0.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import anyio

from asyncjobs.core.job import Callback, Job
from asyncjobs.core.lifecycle import CALLBACK_PATIENCE
from asyncjobs.errors import ConfigurationError, InvalidCallback
from asyncjobs.protocols import CallbackResult
from asyncjobs.settings import Seconds, duration
from asyncjobs.webhooks.destinations import (
    Destination,
    check_receiver,
    closest_receiver,
    parse_destination,
)
from asyncjobs.webhooks.sending import (
    DeliveryFailed,
    Reply,
    Resolver,
    post,
    resolve_by_system,
    resolve_destination,
)
from asyncjobs.webhooks.signing import message_body, message_id, parse_secret, signature_headers

__all__ = ["WebhookOptions", "Webhooks"]

# The beginning of the standard's example ("Deliverability and reliability"). Even with the maximum
# jitter it ends within the day for which a job is kept by default.
_SCHEDULE = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
)
_JITTER = 0.2
_MAX_RETRY_AFTER = timedelta(days=1)
_MAX_TIMEOUT = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class WebhookOptions:
    """The options of `Webhooks`; each duration is seconds or a timedelta.

    - `schedule`: the pauses between calls. Each is lengthened by up to a fifth, at random. After
      the last one, no more calls are made.
    - `timeout`: the limit of one call, at most a minute.
    - `concurrency`: how many calls one process makes at the same time.
    - `host_concurrency`: how many of them go to the same host.
    - `max_result_bytes`: a larger result is left out of the message.
    - `ports`: the ports that a URL may name.
    - `tls`: a context for receivers whose certificates come from a private authority.
    - `loopback`: for development and tests. Receivers may then be on this machine, under any name
      and port, also by plain http.
    - `resolve`: finds the addresses of a host instead of the system's resolver.

    Raises `ValueError` for a schedule that lasts seven days or more, and for limits out of range.
    """

    schedule: Sequence[timedelta] = _SCHEDULE
    timeout: timedelta = timedelta(seconds=15)
    concurrency: int = 50
    host_concurrency: int = 5
    max_result_bytes: int = 16 * 1024
    ports: frozenset[int] = frozenset({443})
    tls: ssl.SSLContext | None = None
    loopback: bool = False
    resolve: Resolver = resolve_by_system

    if TYPE_CHECKING:

        def __init__(  # noqa: PLR0913  # one parameter per option
            self,
            *,
            schedule: Sequence[Seconds] = ...,
            timeout: Seconds = ...,
            concurrency: int = ...,
            host_concurrency: int = ...,
            max_result_bytes: int = ...,
            ports: frozenset[int] = ...,
            tls: ssl.SSLContext | None = ...,
            loopback: bool = ...,
            resolve: Resolver = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", tuple(duration(pause) for pause in self.schedule))
        object.__setattr__(self, "timeout", duration(self.timeout))
        longest = sum(self.schedule, timedelta(0)) * (1 + _JITTER)
        if min(self.schedule, default=timedelta(0)) < timedelta(0) or longest >= CALLBACK_PATIENCE:
            raise ValueError(
                f"WebhookOptions.schedule must end within {CALLBACK_PATIENCE.days} days, including "
                "jitter, and have no negative pauses."
            )
        if not timedelta(0) < self.timeout <= _MAX_TIMEOUT:
            raise ValueError("WebhookOptions.timeout must be more than 0 and at most 60 seconds.")
        if min(self.concurrency, self.host_concurrency) < 1:
            raise ValueError(
                "WebhookOptions.concurrency and WebhookOptions.host_concurrency must be at least 1."
            )


class Webhooks:
    """Sends the ends of jobs to their callback URLs, if the URL belongs to a named receiver.

    `receivers` maps hosts (`hooks.example.com`, or `*.example.com` for all names below it) to the
    secret or secrets that sign their messages. The most specific pattern counts. Raises
    `ConfigurationError` for a malformed host or secret.
    """

    def __init__(
        self,
        receivers: Mapping[str, str | Sequence[str]],
        *,
        options: WebhookOptions | None = None,
    ) -> None:
        self.options = options or WebhookOptions()
        self._secrets: dict[str, list[bytes]] = {}
        for pattern, given in receivers.items():
            check_receiver(pattern, loopback=self.options.loopback)
            secrets = [given] if isinstance(given, str) else given
            if not secrets:
                raise ConfigurationError(f"The receiver {pattern} has no secret.")
            self._secrets[pattern] = [parse_secret(secret) for secret in secrets]

    @property
    def concurrency(self) -> int:
        return self.options.concurrency

    @property
    def host_concurrency(self) -> int:
        return self.options.host_concurrency

    @property
    def timeout(self) -> timedelta:
        return self.options.timeout

    def check(self, url: str, /) -> None:
        self._destination(url)

    async def send(self, job: Job, /, *, now: datetime) -> CallbackResult:
        calls = (job.callback or Callback()).calls
        again = self._pause_after(calls)
        limit = self.options.timeout.total_seconds()
        try:
            with anyio.fail_after(limit):
                reply = await self._post(job, now)
        except TimeoutError:
            return CallbackResult(f"no answer within {limit:g} s", again)
        except InvalidCallback as error:
            return CallbackResult(error.reason, again)
        except DeliveryFailed as error:
            return CallbackResult(str(error), again)
        if 200 <= reply.status < 300:
            return CallbackResult()
        return CallbackResult(f"it responded with {reply.status}", _honour(reply, again))

    async def _post(self, job: Job, now: datetime) -> Reply:
        destination, secrets = self._destination(job.callback_url or "")
        body = message_body(job, self.options.max_result_bytes)
        headers = [
            ("user-agent", "asyncjobs-webhooks"),
            ("content-type", "application/json"),
            *signature_headers(message_id(job), now, body, secrets),
        ]
        addresses = await resolve_destination(
            destination, self.options.resolve, loopback=self.options.loopback
        )
        return await post(destination, addresses, headers, body, self._tls)

    def _destination(self, url: str) -> tuple[Destination, Sequence[bytes]]:
        """Return the destination of a URL, with its receiver's secrets; raise `InvalidCallback`."""
        destination = parse_destination(url)
        pattern = closest_receiver(destination.host, self._secrets)
        if pattern is None:
            raise InvalidCallback("its host is not one of the receivers")
        # With `loopback`, http is checked when the name is resolved.
        if destination.scheme != "https" and not self.options.loopback:
            raise InvalidCallback("it is not https")
        if not self.options.loopback and destination.port not in self.options.ports:
            raise InvalidCallback("its port is not allowed")
        return destination, self._secrets[pattern]

    def _pause_after(self, calls: int) -> timedelta | None:
        """Return the pause before the next call if this one fails; `calls` were made before it."""
        if calls >= len(self.options.schedule):
            return None
        return self.options.schedule[calls] * (1 + _JITTER * random.random())  # noqa: S311  # no secret

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self.options.tls or ssl.create_default_context()


def _honour(reply: Reply, again: timedelta | None) -> timedelta | None:
    """Apply `Retry-After`; 410 ends the deliveries ("Delivery success and failure")."""
    if again is None or reply.status == 410:
        return None
    return max(again, min(timedelta(seconds=reply.retry_after or 0), _MAX_RETRY_AFTER))
