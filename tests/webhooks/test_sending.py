"""One POST is sent to a checked address under the receiver's name, within limits."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

import anyio
import pytest
import trustme

from asyncjobs.webhooks.destinations import Destination, parse_destination
from asyncjobs.webhooks.sending import (
    DeliveryFailed,
    Reply,
    post,
    resolve_by_system,
    resolve_destination,
)
from tests.webhooks.conftest import NAME, OK, Answering, Receiver, answer, receiving, serving_as

pytestmark = pytest.mark.anyio

HERE = ["127.0.0.1"]
HEADERS = [("webhook-id", "job_1")]


def target_of(receiver: Receiver, scheme: str = "http", host: str = NAME) -> Destination:
    return Destination(scheme, host, receiver.port, "/ended?by=us")


async def send(target: Destination, tls: ssl.SSLContext, body: bytes = b'{"a":1}') -> Reply:
    with anyio.fail_after(20):
        return await post(target, HERE, HEADERS, body, tls)


async def test_a_post_arrives_with_target_headers_and_body(trusting: ssl.SSLContext) -> None:
    async with receiving() as receiver:
        reply = await send(target_of(receiver), trusting)
    [got] = receiver.posts
    assert (reply, got.target, got.body) == (Reply(204), "/ended?by=us", b'{"a":1}')
    assert got.headers["host"] == f"{NAME}:{receiver.port}"
    assert (got.headers["webhook-id"], got.headers["connection"]) == ("job_1", "close")


async def test_tls_uses_the_name_and_not_the_address(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    names: list[str | None] = []
    tls = serving_as(authority, NAME)
    tls.sni_callback = lambda _, name, __: names.append(name)
    async with receiving(tls=tls) as receiver:
        assert (await send(target_of(receiver, "https"), trusting)).status == 204
    assert names == [NAME]
    assert receiver.posts[0].headers["host"].startswith(NAME)


async def test_a_certificate_for_another_name_is_refused(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    async with receiving(tls=serving_as(authority, "elsewhere.example.com")) as receiver:
        with pytest.raises(DeliveryFailed, match="TLS failed"):
            await send(target_of(receiver, "https"), trusting)
    assert not receiver.posts


async def test_a_certificate_of_an_unknown_authority_is_refused(
    authority: trustme.CA,
) -> None:
    async with receiving(tls=serving_as(authority, NAME)) as receiver:
        with pytest.raises(DeliveryFailed, match="TLS failed"):
            await send(target_of(receiver, "https"), ssl.create_default_context())
    assert not receiver.posts


async def test_a_redirect_is_not_followed(trusting: ssl.SSLContext) -> None:
    async with receiving() as inside:
        there = f"location: http://127.0.0.1:{inside.port}/"
        async with receiving(answer(307, there)) as receiver:
            assert (await send(target_of(receiver), trusting)).status == 307
    assert (inside.connections, receiver.connections) == (0, 1)


async def test_only_the_head_of_a_response_is_read(trusting: ssl.SSLContext) -> None:
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 1_000_000
    async with receiving(endless) as receiver:
        assert (await send(target_of(receiver), trusting)).status == 200


async def test_informational_responses_are_skipped(
    trusting: ssl.SSLContext,
) -> None:
    async with receiving(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK) as receiver:
        assert (await send(target_of(receiver), trusting)).status == 204


BAD = {
    "hangs-up": None,
    "no-http": b"220 mail.example.com ESMTP\r\n",
    "half-a-head": b"HTTP/1.1 200 OK\r\ncontent-",
    "endless-head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "endless-line": b"HTTP/1.1 200 " + b"x" * 1_000_000,
    "endless-hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000,
}


@pytest.mark.parametrize("said", BAD.values(), ids=list(BAD))
async def test_an_invalid_response_fails_the_delivery(
    said: bytes | None, trusting: ssl.SSLContext
) -> None:
    async with receiving(said) as receiver:
        with pytest.raises(DeliveryFailed):
            await send(target_of(receiver), trusting)


async def test_a_refused_connection_fails_the_delivery(trusting: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DeliveryFailed, match="connection failed"):
        await send(Destination("http", NAME, port, "/"), trusting)


async def test_the_next_address_is_tried_after_one_refuses(trusting: ssl.SSLContext) -> None:
    async with receiving() as receiver:
        reply = await post(target_of(receiver), ["127.0.0.2", *HERE], [], b"{}", trusting)
    assert reply.status == 204


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120), ("0", 0), ("-1", None), ("soon", None), ("9" * 10, None)],
)
async def test_retry_after_is_read_if_it_is_a_number(
    header: str, seconds: int | None, trusting: ssl.SSLContext
) -> None:
    async with receiving(answer(503, f"Retry-After: {header}")) as receiver:
        assert await send(target_of(receiver), trusting) == Reply(503, seconds)


# addresses

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    "found",
    [["10.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:10.0.0.1"], ["127.0.0.1"], [], ["nonsense"]],
    ids=["private", "one-of-two", "mapped", "loopback", "none", "nonsense"],
)
async def test_a_name_with_any_private_address_is_not_called(found: Sequence[str]) -> None:
    with pytest.raises(DeliveryFailed, match="not public"):
        await resolve_destination(
            parse_destination(f"https://{NAME}/"), Answering(found), loopback=False
        )


async def test_a_name_is_resolved_once() -> None:
    rebinding = Answering([PUBLIC, "2606:4700:4700::1111"], ["127.0.0.1"])
    target = parse_destination(f"https://{NAME}:8443/")
    found = await resolve_destination(target, rebinding, loopback=False)
    assert (found, rebinding.asked) == ([PUBLIC, "2606:4700:4700::1111"], [(NAME, 8443)])


async def test_plain_http_is_only_allowed_on_loopback() -> None:
    plain = parse_destination(f"http://{NAME}/")
    assert await resolve_destination(plain, Answering(HERE), loopback=True) == HERE
    for found in ([PUBLIC], ["127.0.0.1", PUBLIC], []):
        with pytest.raises(DeliveryFailed):
            await resolve_destination(plain, Answering(found), loopback=True)
    with pytest.raises(DeliveryFailed, match="not https"):
        await resolve_destination(plain, Answering([PUBLIC]), loopback=False)


async def test_an_unknown_name_fails_the_delivery() -> None:
    async def missing(_host: str, _port: int) -> Sequence[str]:
        await anyio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    with pytest.raises(DeliveryFailed, match="cannot be resolved"):
        await resolve_destination(parse_destination(f"https://{NAME}/"), missing, loopback=False)


async def test_the_default_resolver_asks_the_system() -> None:
    assert "127.0.0.1" in await resolve_by_system("localhost", 80)
