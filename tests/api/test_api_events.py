import asyncio

import msgspec
from api_fake_service import FakeService, make_entries

from orchestrator.api.events import _stream


def test_entries_are_paged_by_seq(api):
    body = api.get("/v1/events?limit=2").json()
    assert [e["seq"] for e in body["entries"]] == [1, 2]
    body = api.get("/v1/events", params={"after": body["next"]}).json()
    assert [e["seq"] for e in body["entries"]] == [3, 4, 5]
    assert body["next"] == 5


def test_a_run_sees_its_own_entries_and_those_of_its_nodes(api):
    body = api.get("/v1/runs/tiny/events").json()
    assert [e["kind"] for e in body["entries"]] == ["node_ready", "run_submitted", "fault_injected", "worker_exited"]
    assert body["next"] == 5
    assert api.get("/v1/runs/later/events").json()["entries"] == []


def test_an_entry_has_event_commands_and_reason(api):
    entry = api.get("/v1/events?after=3&limit=1").json()["entries"][0]
    assert entry["event"]["signal"] == 9
    assert entry["commands"][0]["kind"] == "leave_gang"
    assert entry["reason"] == "Rank 1 died: the others leave the gang."


def test_a_long_poll_ends_with_the_next_entry_of_its_run(api, service):
    arriving = [msgspec.structs.replace(make_entries()[4], seq=6), msgspec.structs.replace(make_entries()[3], seq=7)]
    waits = []

    async def arrive(after, timeout_s):
        waits.append(after)
        service.journal.append(arriving.pop(0))

    service.wait_entry = arrive
    body = api.get("/v1/runs/tiny/events?after=5&wait_s=30").json()
    assert [e["seq"] for e in body["entries"]] == [7]
    assert waits == [5, 6]


def test_a_long_poll_without_news_is_empty(api):
    assert api.get("/v1/runs/tiny/events?after=5").json() == {"entries": [], "next": 5}


def _lines(chunks: int, after: int, run: str = "") -> list[bytes]:
    service = FakeService()

    async def wait(_after, _timeout_s):
        return None

    service.wait_entry = wait

    async def read() -> list[bytes]:
        stream = _stream(service, after, run)
        return [await anext(stream) for _ in range(chunks)]

    return asyncio.run(read())


def test_a_stream_sends_each_entry_once_and_then_keeps_alive():
    chunks = _lines(4, after=3)
    assert [c.split(b"\n")[0] for c in chunks] == [b"id: 4", b"id: 5", b": still here", b": still here"]
    data = chunks[0].split(b"data: ")[1]
    assert data.endswith(b"\n\n")
    assert msgspec.json.decode(data)["reason"].startswith("Rank 1 died")


def test_a_stream_of_a_run_leaves_the_others_out():
    assert [c.split(b"\n")[0] for c in _lines(2, after=3, run="tiny")] == [b"id: 4", b": still here"]
