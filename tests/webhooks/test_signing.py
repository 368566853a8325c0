"""The message of a webhook and its signature."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from asyncjobs import Job, JobError
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Callback
from asyncjobs.errors import ConfigurationError
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, begun
from asyncjobs.webhooks.signing import message_body, message_id, parse_secret, signature_headers

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  # only for tests
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
KEYS = [parse_secret(SECRET), parse_secret(OTHER)]


def done(result: bytes = b'{"rows":7}') -> Job:
    return lifecycle.complete(begun(sample_job()), NOW, token="t", result=result)


def test_the_message_has_the_title_the_tags_and_the_metadata() -> None:
    job = sample_job(
        given_title="Given", tags=("customer:42",), given_metadata_json=b'{"a":"\xc3\xa9"}'
    )
    ended = lifecycle.complete(begun(job).changed(new_title="New"), NOW, token="t", result=b"1")
    data = json.loads(message_body(ended, 100))["data"]
    assert (data["title"], data["tags"], data["metadata"]) == ("New", ["customer:42"], {"a": "é"})
    plain = json.loads(message_body(done(), 100))["data"]
    assert (plain["title"], plain["tags"], plain["metadata"]) == (None, [], {})


def test_the_signature_matches_the_test_vectors_of_the_standard() -> None:
    """Uses the test vectors of the public libraries."""
    headers = dict(
        signature_headers(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            datetime.fromtimestamp(1614265330, UTC),
            b'{"test": 2432232314}',
            KEYS[:1],
        )
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(max_size=200).map(lambda data: json.dumps(data.hex()).encode()))
def test_a_receiver_with_either_secret_can_verify_it(body: bytes) -> None:
    headers = dict(signature_headers("job_1_completed", datetime.now(UTC), body, KEYS))
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(body, headers)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "body"])
def test_a_changed_message_is_not_verified(name: str) -> None:
    body = b'{"a":1}'
    sent = dict(signature_headers("job_1_completed", datetime.now(UTC), body, KEYS))
    sent["body"] = body.decode()
    sent[name] = {"webhook-timestamp": str(int(sent["webhook-timestamp"]) - 1)}.get(name, "{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(sent.pop("body"), sent)


def test_a_message_keeps_its_id_without_a_full_stop() -> None:
    job = done()
    assert message_id(job) == f"{job.id}_completed"
    assert message_id(lifecycle.call_back(job.model_copy(update=OWED), NOW)) == message_id(job)
    assert "." not in message_id(job)


OWED: dict[str, Any] = {"callback": Callback(next_at=NOW)}


def test_the_message_is_the_status_document_with_the_name_of_the_event() -> None:
    job = done()
    event = json.loads(message_body(job, 100))
    assert (event["type"], event["timestamp"]) == ("job.completed", "2030-01-01T12:00:00.123456Z")
    assert (event["data"]["jobId"], event["data"]["status"]) == (job.id, "completed")
    assert (event["data"]["result"], event["data"]["resultOmitted"]) == ({"rows": 7}, False)
    failed = lifecycle.fail(
        begun(sample_job()), NOW, token="t", error=JobError(code="bad", message="It was bad.")
    )
    event = json.loads(message_body(failed, 100))
    assert (event["type"], event["data"]["error"]) == ("job.failed", "It was bad.")
    cancelled = lifecycle.cancel(sample_job(), NOW + timedelta(seconds=1))
    assert json.loads(message_body(cancelled, 100))["type"] == "job.cancelled"


def test_a_result_over_the_limit_is_omitted_and_marked() -> None:
    at_limit, over = done(b'"' + b"x" * 98 + b'"'), done(b'"' + b"x" * 99 + b'"')
    assert json.loads(message_body(at_limit, 100))["data"]["result"] == "x" * 98
    left_out = json.loads(message_body(over, 100))["data"]
    assert (left_out["result"], left_out["resultOmitted"]) == (None, True)


def test_a_message_contains_neither_payload_nor_owner() -> None:
    job = sample_job(user_id="ann", payload_json=b'"hush"', callback_url="https://a.example.com/k")
    ended = lifecycle.complete(begun(job), NOW, token="t", result=b"1")
    body = message_body(ended, 100)
    assert not any(word in body for word in (b"hush", b"ann", b"a.example.com"))


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_short", SECRET.removeprefix("whsec_"), "whsec_" + "A" * 88]
)
def test_a_malformed_secret_is_refused_and_not_in_the_error(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_secret(text)
    assert not text.removeprefix("whsec_") or text not in str(refused.value)


def secret_of(size: int) -> str:
    return "whsec_" + b64encode(bytes(range(size))).decode()


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_of_24_to_64_bytes_is_accepted(size: int) -> None:
    assert parse_secret(secret_of(size)) == bytes(range(size))


@pytest.mark.parametrize("size", [0, 23, 65])
def test_a_shorter_or_longer_secret_is_refused(size: int) -> None:
    with pytest.raises(ConfigurationError, match="24 to 64 random bytes"):
        parse_secret(secret_of(size))


@pytest.mark.parametrize("stray", ["!", " ", "\n", "-", "_", "=", "é", "whsec_"])
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_secret_with_stray_characters_is_refused(stray: str, place: str) -> None:
    """A lenient decoder skips them, and signs with a different secret than the receiver's."""
    secret = secret_of(48)
    at = {"start": len("whsec_"), "middle": 20, "end": len(secret)}[place]
    with pytest.raises(ConfigurationError):
        parse_secret(secret[:at] + stray + secret[at:])
