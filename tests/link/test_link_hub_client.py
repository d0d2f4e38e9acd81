from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from link_cluster import Cluster, Sink, hello, until

from orchestrator.link import client as client_module
from orchestrator.link.auth import MAC_BYTES, MAGIC, NONCE_BYTES, admit_supervisor, prove_to_daemon
from orchestrator.link.endpoint import Endpoint, write_endpoint
from orchestrator.link.frames import MAX_FRAME_BYTES, encode
from orchestrator.link.messages import (
    Ack,
    Beat,
    Hello,
    LogChunk,
    Order,
    Report,
    Shutdown,
    WorkerStatus,
    WorkerStatuses,
)
from orchestrator.recovery.commands import ProbeNode
from orchestrator.recovery.events import NodeLost, WorkerExited


def lost(n: int) -> NodeLost:
    return NodeLost(node="n0", evidence=str(n))


def numbers(sink: Sink) -> list[int]:
    return [int(event.evidence) for event in sink.events if isinstance(event, NodeLost)]


async def raw(cluster: Cluster, hub, said: Hello | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has proved the key, and said Hello if one is given."""
    reader, writer = await asyncio.open_connection(*hub.address)
    await prove_to_daemon(reader, writer, cluster.key)
    if said:
        writer.write(encode(said))
    return reader, writer


async def closed(reader: asyncio.StreamReader) -> None:
    """Reads until the peer closes the line."""
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(65536), 20.0):
            pass


def test_messages_pass_both_ways(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink, got = Sink(), []
        hub = await cluster.hub(sink)
        status = WorkerStatus(run="r", attempt=1, rank=0, pid=7, phase="train", step=3, loss=2.5)
        client = cluster.client(got.append, workers=(status,))
        await until(lambda: sink.hellos and client.connected)
        assert hub.connections["n0"].statuses == {("r", 0): status}

        order = Order(epoch=4, command=ProbeNode(node="n0", purpose="preflight"), workload={"argv": ["train"]})
        assert hub.send("n0", order)
        assert not hub.send("n1", order)
        newer = msgspec.structs.replace(status, step=4)
        assert client.send(WorkerStatuses(workers=(newer,)))
        assert client.send(LogChunk(request=1, attempt=1, text="é", next_offset=2))
        client.report(lost(1))
        await until(lambda: got and sink.chunks and sink.reports and sink.beats)
        assert got == [order]
        assert hub.connections["n0"].statuses == {("r", 0): newer}
        assert hub.connections["n0"].last_beat_ns == sink.beats[-1][1]

        hub.ack("n0", 1)
        assert await client.settle(10.0)
        client.report(WorkerExited(run="r", rank=0, node="n0"))
        await until(lambda: not hub.connections["n0"].statuses)

    in_cluster(body)


def test_a_supervisor_that_ends_is_seen_and_one_that_returns_too(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        cluster.client()
        await until(lambda: sink.hellos)
        cluster.tasks[0].cancel()
        await until(lambda: sink.gone)
        assert sink.gone[0][0] == "n0"
        assert not hub.connections
        cluster.client()
        await until(lambda: len(sink.hellos) == 2)

    in_cluster(body)


def test_unacknowledged_reports_come_again_in_order_and_each_once(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        client = cluster.client()
        for n in range(3):
            client.report(lost(n))
        await until(lambda: len(sink.reports) == 3)
        hub.ack("n0", 1)
        await until(lambda: len(client.outbox) == 2)
        hub.drop("n0")
        client.report(lost(3))
        await until(lambda: len(sink.hellos) == 2 and len(sink.reports) == 4)
        assert numbers(sink) == [0, 1, 2, 3]
        hub.ack("n0", 4)
        assert await client.settle(10.0)

    in_cluster(body)


def test_a_lost_acknowledgement_is_given_again(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        client = cluster.client()
        client.report(lost(0))
        await until(lambda: sink.reports)
        hub.drop("n0")
        await until(lambda: not client.connected)
        assert not hub.ack("n0", 1)
        assert await client.settle(10.0)
        assert numbers(sink) == [0]

    in_cluster(body)


def test_a_new_life_of_a_supervisor_counts_from_one_again(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        await cluster.hub(sink)
        cluster.client(life="first").report(lost(0))
        await until(lambda: sink.reports)
        cluster.tasks[0].cancel()
        cluster.client(life="second").report(lost(1))
        await until(lambda: len(sink.reports) == 2)
        assert [report.cursor for _, report in sink.reports] == [1, 1]

    in_cluster(body)


def test_a_daemon_on_another_port_is_found_and_gets_what_was_not_acknowledged(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        first, second = Sink(), Sink()
        old = await cluster.hub(first)
        client = cluster.client()
        client.report(lost(0))
        client.report(lost(1))
        await until(lambda: len(first.reports) == 2)
        old.ack("n0", 1)
        await until(lambda: len(client.outbox) == 1)
        await old.close()
        client.report(lost(2))
        await cluster.hub(second)
        await until(lambda: len(second.reports) == 2)
        assert numbers(second) == [1, 2]

    in_cluster(body)


def test_with_two_daemons_the_one_in_the_endpoint_file_is_followed(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        first, second = Sink(), Sink()
        await cluster.hub(first)
        cluster.client()
        await until(lambda: first.hellos)
        await cluster.hub(second)
        await until(lambda: second.hellos and first.gone)

    in_cluster(body)


def test_a_second_connection_of_a_node_replaces_the_first(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        reader, writer = await raw(cluster, hub, hello(pid=1))
        await until(lambda: sink.hellos)
        _, second = await raw(cluster, hub, hello(pid=2))
        await until(lambda: len(sink.hellos) == 2)
        await closed(reader)
        assert hub.connections["n0"].hello.pid == 2
        assert sink.gone == []
        writer.close()
        second.close()
        await until(lambda: sink.gone)

    in_cluster(body)


def test_a_daemon_that_falls_silent_is_left_and_sought_again(in_cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(client_module, "BEAT_INTERVAL_S", 0.05)

    async def body(cluster: Cluster) -> None:
        admitted = []

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await admit_supervisor(reader, writer, cluster.key)
            admitted.append(writer)

        server = await asyncio.start_server(mute, "127.0.0.1", 0)
        write_endpoint(cluster.endpoint, Endpoint(*server.sockets[0].getsockname()))
        cluster.client()
        try:
            await until(lambda: len(admitted) >= 2)
        finally:
            server.close()
            for writer in admitted:
                writer.close()

    in_cluster(body)


def test_a_wrong_key_gets_nothing_and_disturbs_nobody(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink, got = Sink(), []
        hub = await cluster.hub(sink)
        stranger = cluster.client(got.append, key=b"x" * 32, node="stranger")
        friend = cluster.client(node="friend")
        await until(lambda: friend.connected)
        hub.send("stranger", Shutdown(why="test"))
        await asyncio.sleep(0.3)
        assert [said.node for said in sink.hellos] == ["friend"]
        assert not stranger.connected
        assert got == []

    in_cluster(body)


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    "first",
    [
        encode(hello(version=99)),
        encode(Beat(sent_ns=1)),
        _frame(b"not json"),
        _frame(b'{"type":"order"}'),
        _frame(b'{"type":"hello","version":"one"}'),
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        encode(hello()) + encode(hello()),
        encode(hello()) + _frame(b"\xff\xfe"),
        encode(hello()) + b"\xff\xff\xff\xff",
    ],
    ids=["version", "no hello", "no json", "wrong way", "types", "oversize", "two hellos", "no utf-8", "huge"],
)
def test_a_peer_with_the_key_that_talks_nonsense_is_dropped(in_cluster, first: bytes) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        reader, writer = await raw(cluster, hub)
        writer.write(first)
        await closed(reader)
        writer.close()
        assert sink.reports == []
        friend = cluster.client(node="friend")
        await until(lambda: friend.connected)

    in_cluster(body)


@pytest.mark.parametrize("garbage", [b"", b"GET / HTTP/1.1\r\n\r\n" * 10, b"\0" * (NONCE_BYTES + MAC_BYTES)])
def test_a_peer_without_the_key_is_dropped(in_cluster, garbage: bytes) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        reader, writer = await asyncio.open_connection(*hub.address)
        await reader.readexactly(len(MAGIC) + NONCE_BYTES)
        writer.write(garbage)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert sink.hellos == []

    in_cluster(body)


def test_frames_before_the_proof_are_not_obeyed(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        reader, writer = await asyncio.open_connection(*hub.address)
        writer.write(encode(hello()) + encode(Report(cursor=1, event=lost(0), age_ns=0)))
        await closed(reader)
        writer.close()
        assert sink.hellos == []
        assert sink.reports == []

    in_cluster(body)


def test_a_sink_that_fails_costs_one_connection_and_the_report_comes_again(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        class Stumbling(Sink):
            stumbles = 1

            def report(self, node: str, report: Report) -> None:
                if self.stumbles:
                    self.stumbles -= 1
                    raise RuntimeError("disk full")
                super().report(node, report)

        sink = Stumbling()
        await cluster.hub(sink)
        client = cluster.client()
        client.report(lost(0))
        await until(lambda: sink.reports)
        assert len(sink.hellos) == 2
        assert "disk full" in sink.gone[0][1]

    in_cluster(body)


def test_a_message_that_fails_in_the_supervisor_does_not_end_it(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        sink, got = Sink(), []
        hub = await cluster.hub(sink)

        def deliver(message: object) -> None:
            got.append(message)
            raise RuntimeError("bug")

        client = cluster.client(deliver)
        await until(lambda: client.connected)
        hub.send("n0", Shutdown(why="one"))
        hub.send("n0", Shutdown(why="two"))
        await until(lambda: len(got) == 2)
        assert client.connected

    in_cluster(body)


def test_an_endpoint_file_that_is_missing_or_broken_is_read_again(in_cluster) -> None:
    async def body(cluster: Cluster) -> None:
        client = cluster.client()
        await asyncio.sleep(0.1)
        cluster.endpoint.write_text('{"host": "127.0.0.1"')
        await asyncio.sleep(0.1)
        sink = Sink()
        await cluster.hub(sink)
        await until(lambda: client.connected)

    in_cluster(body)


def test_a_peer_that_does_not_read_is_cut_off(in_cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.link.frames.MAX_UNSENT_BYTES", 1 << 20)

    async def body(cluster: Cluster) -> None:
        sink = Sink()
        hub = await cluster.hub(sink)
        _, writer = await raw(cluster, hub, hello())
        await until(lambda: sink.hellos)
        large = Shutdown(why="x" * (1 << 20))
        for _ in range(64):
            if not hub.send("n0", large):
                break
        else:
            pytest.fail("64 MiB were buffered for a peer that reads nothing")
        await until(lambda: sink.gone)
        writer.close()

    in_cluster(body)


def test_the_wire_carries_every_message_of_the_link() -> None:
    order = Order(epoch=1, command=ProbeNode(node="n", purpose="probation"))
    for message in (order, Ack(cursor=3), Beat(sent_ns=1)):
        payload = encode(message)
        assert int.from_bytes(payload[:4], "big") == len(payload) - 4
