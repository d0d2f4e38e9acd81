import pytest
from starlette.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.api.guard import Guard, host_name

TOKEN = "0123456789abcdef0123"


@pytest.fixture
def tcp(service, tmp_path):
    (tmp_path / "index.html").write_text("<h1>console</h1>")
    app = Guard(create_app(service, console=tmp_path), TOKEN)
    return TestClient(app, base_url="http://127.0.0.1:8480", client=("127.0.0.1", 50000))


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_token_opens_the_api(tcp):
    assert tcp.get("/v1/health", headers=_bearer(TOKEN)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, _bearer(""), _bearer(TOKEN[:-1]), _bearer(TOKEN + "0"), _bearer("é"), {"Authorization": f"Basic {TOKEN}"}],
)
def test_without_the_token_nothing_is_told_or_done(tcp, service, headers):
    raw = {name: value.encode() for name, value in headers.items()}
    for response in (tcp.get("/v1/runs", headers=raw), tcp.post("/v1/shutdown", headers=raw)):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    assert service.calls == []


def test_metrics_need_no_token_on_loopback_only(tcp, service):
    assert tcp.get("/metrics").status_code == 200
    assert tcp.post("/metrics").status_code == 401
    app = Guard(create_app(service), TOKEN, hosts=["train.example"])
    far = TestClient(app, base_url="http://train.example", client=("10.0.0.7", 50000))
    assert far.get("/metrics").status_code == 401
    assert far.get("/metrics", headers=_bearer(TOKEN)).status_code == 200


def test_the_console_page_is_open_and_holds_no_data(tcp):
    assert tcp.get("/console/").text == "<h1>console</h1>"
    assert tcp.get("/console/../v1/runs").status_code == 401
    assert tcp.get("/consoles").status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]:80"]
)
def test_a_rebound_name_is_turned_away_even_with_the_token(tcp, host):
    response = tcp.get("/v1/health", headers={**_bearer(TOKEN), "Host": host})
    assert response.status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8480", "localhost", "LOCALHOST:1", "[::1]:8480", "localhost."])
def test_loopback_names_are_let_in(tcp, host):
    assert tcp.get("/v1/health", headers={**_bearer(TOKEN), "Host": host}).status_code == 200


def test_a_short_token_is_no_token(service):
    with pytest.raises(ValueError, match="16"):
        Guard(create_app(service), "short")


def test_host_name_of_an_ipv6_address():
    assert host_name("[::1]:80") == "::1"
