import pytest

from orchestrator.api.errors import UnavailableError
from orchestrator.daemon.service import write_run
from orchestrator.spec.load import parse_spec


def test_a_run_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    spec = parse_spec("name: x\nnodes: 1\nworkload: {command: [a.out]}\n", str(tmp_path / "x.yaml"))
    (tmp_path / "runs").touch()
    with pytest.raises(UnavailableError, match="can't be written: Not a directory"):
        write_run(spec, tmp_path / "runs" / "x")
