from orchestrator.node.paths import runtime_dir

HEAVY = (
    "ray",
    "torch",
    "pydantic",
    "httpx",
    "rich",
    "numpy",
    "prometheus_client",
    "starlette",
    "uvicorn",
    "yaml",
    "msgspec",
)


def test_the_command_line_imports_nothing_heavy(program):
    loaded = program("import sys, orchestrator.cli.main; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_no_command_imports_ray_or_torch(program, tmp_path):
    """Every module of the CLI, the spec and the API's client side at once, and a command that fails for want of a daemon."""
    code = f"""
import importlib, pkgutil, sys
import orchestrator.cli, orchestrator.spec
from orchestrator.cli.main import main
for package in (orchestrator.cli, orchestrator.spec):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
try:
    main(["--state", {str(tmp_path / "none")!r}, "status"])
except SystemExit as end:
    print(end.code, *({{"ray", "torch"}} & set(sys.modules)))
"""
    assert program(code) == "5\n"
    runtime_dir(tmp_path / "none").rmdir()
