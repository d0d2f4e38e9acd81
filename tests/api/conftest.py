import pytest
from api_fake_service import FakeService
from starlette.testclient import TestClient

from orchestrator.api.app import create_app


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def api(service: FakeService) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)
