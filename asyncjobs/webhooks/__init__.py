"""Webhooks (extra `webhooks`): tell another server of a job's end, signed by Standard Webhooks.

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

import anyio

from asyncjobs.core.job import Callback, Job
from asyncjobs.core.lifecycle import CALLBACK_PATIENCE
from asyncjobs.errors import ConfigurationError, InvalidCallback
from asyncjobs.protocols import CallbackResult
from asyncjobs.webhooks.sending import Reply, Resolve, Undelivered, addresses_of, post, resolve
from asyncjobs.webhooks.signing import body_of, id_of, secret_of, signed
from asyncjobs.webhooks.targets import Target, check_pattern, closest, parse_target

__all__ = ["WebhookOptions", "Webhooks"]

# The beginning of the standard's example ("Deliverability and reliability"): with all jitter it
# ends within the day for which a job is kept by default.
_SCHEDULE = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
)
_JITTER = 0.2
_LONGEST_RETRY_AFTER = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class WebhookOptions:
    """What rarely needs to be changed.

    `schedule` holds the pauses between calls; each is drawn out by up to a fifth, at random, and
    after the last one the callback is given up. `timeout` bounds one call, in seconds; `room` is
    how many may be under way in a process. A result of more than `max_result_bytes` is left out.
    `ports` are those that a URL may name. `tls` is for receivers whose certificates come from an
    authority of your own.

    `loopback` is for development and tests: receivers may then be on this machine, by whatever
    name and port, also by plain http. `resolve` finds addresses in place of the system.
    """

    schedule: tuple[timedelta, ...] = _SCHEDULE
    timeout: float = 15.0
    room: int = 10
    max_result_bytes: int = 16 * 1024
    ports: frozenset[int] = frozenset({443})
    tls: ssl.SSLContext | None = None
    loopback: bool = False
    resolve: Resolve = resolve

    def __post_init__(self) -> None:
        longest = sum(self.schedule, timedelta(0)) * (1 + _JITTER)
        if min(self.schedule, default=timedelta(0)) < timedelta(0) or longest >= CALLBACK_PATIENCE:
            raise ValueError(
                f"A schedule ends within {CALLBACK_PATIENCE.days} days, jitter included."
            )
        if not 0 < self.timeout <= 60 or self.room < 1:
            raise ValueError("A call has a timeout of up to 60 seconds, and room for at least one.")


class Webhooks:
    """Tells callback URLs of jobs' ends, if they belong to a receiver that is named here.

    `receivers` maps hosts (`hooks.example.com`, or `*.example.com` for all below a name) to the
    secret, or the secrets, their calls are signed by. The closest one counts. Raises
    `ConfigurationError` for what is no host or no secret.
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
            check_pattern(pattern, loopback=self.options.loopback)
            secrets = [given] if isinstance(given, str) else given
            if not secrets:
                raise ConfigurationError(f"The receiver {pattern} needs a secret.")
            self._secrets[pattern] = [secret_of(secret) for secret in secrets]

    @property
    def room(self) -> int:
        return self.options.room

    @property
    def longest(self) -> timedelta:
        return timedelta(seconds=self.options.timeout)

    def check(self, url: str, /) -> None:
        self._target(url)

    async def tell(self, job: Job, /, *, now: datetime) -> CallbackResult:
        calls = (job.callback or Callback()).calls
        again = self._pause(calls)
        try:
            with anyio.fail_after(self.options.timeout):
                reply = await self._send(job, now)
        except TimeoutError:
            return CallbackResult(f"no answer within {self.options.timeout:g} s", again)
        except InvalidCallback as error:
            return CallbackResult(error.reason, again)
        except Undelivered as error:
            return CallbackResult(str(error), again)
        if 200 <= reply.status < 300:
            return CallbackResult()
        return CallbackResult(f"it answered {reply.status}", _heeded(reply, again))

    async def _send(self, job: Job, now: datetime) -> Reply:
        target, secrets = self._target(job.callback_url or "")
        body = body_of(job, self.options.max_result_bytes)
        headers = [
            ("user-agent", "asyncjobs-webhooks"),
            ("content-type", "application/json"),
            *signed(id_of(job), now, body, secrets),
        ]
        loopback = self.options.loopback
        addresses = await addresses_of(target, self.options.resolve, loopback=loopback)
        return await post(target, addresses, headers, body, self._tls)

    def _target(self, url: str) -> tuple[Target, Sequence[bytes]]:
        target = parse_target(url)
        pattern = closest(target.host, self._secrets)
        if pattern is None:
            raise InvalidCallback("its host is not one of the receivers")
        # Whether http is harmless shows when the name is resolved.
        if target.scheme != "https" and not self.options.loopback:
            raise InvalidCallback("it is not https")
        if not self.options.loopback and target.port not in self.options.ports:
            raise InvalidCallback("its port is not allowed")
        return target, self._secrets[pattern]

    def _pause(self, calls: int) -> timedelta | None:
        """Say after what pause to call again when so many calls went before this one."""
        if calls >= len(self.options.schedule):
            return None
        return self.options.schedule[calls] * (1 + _JITTER * random.random())  # noqa: S311  # no secret

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self.options.tls or ssl.create_default_context()


def _heeded(reply: Reply, again: timedelta | None) -> timedelta | None:
    """Do as the receiver wishes ("Delivery success and failure"): 410 is its farewell."""
    if again is None or reply.status == 410:
        return None
    wished = timedelta(seconds=reply.retry_after or 0)
    return max(again, min(wished, _LONGEST_RETRY_AFTER))
