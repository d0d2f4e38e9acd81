"""The pages are true of the repository: what is drawn from the code is up to date, and what they name exists."""

from __future__ import annotations

import hashlib
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# A path of ours begins with one of our folders; what a run or a make target leaves behind is not in the repository.
FOLDERS = ("orchestrator", "healthcheck", "trainer", "kernels", "dashboards", "tests", "docs", "examples", ".ci")
LEFT_BEHIND = ("examples/data",)
COMMAND = re.compile(r"^(?:- )?`?(?:\$ )?holdfast (?:--state \S+ )?([a-z]+)", flags=re.MULTILINE)
INLINE_COMMAND = re.compile(r"`holdfast (?:--state \S+ )?([a-z]+)")
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def heading_anchors(text: str) -> set[str]:
    """As GitHub makes them: small letters, spaces to hyphens, other signs dropped."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def named_paths(text: str) -> set[str]:
    words = {word for code in CODE.findall(without_blocks(text)) for word in re.split(r"[\s,]+", code)}
    paths = {word.rstrip(".:").partition("::")[0] for word in words if word.startswith(tuple(f"{f}/" for f in FOLDERS))}
    return {path for path in paths if path.rstrip("/") not in LEFT_BEHIND}


def test_the_pages_are_there() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "ARCHITECTURE.md", "GLOSSARY.md", "CONTRIBUTING.md", "state-machines.md"} <= names


def test_the_state_machines_are_drawn_from_the_present_tables() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate_state_machines.py"))["page"]()
    assert (ROOT / "docs" / "state-machines.md").read_text() == made, "run: python docs/generate_state_machines.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in heading_anchors(target.read_text()), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    missing = [path for path in sorted(named_paths(page.read_text())) if not list(ROOT.glob(path.rstrip("/")))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_exist(page: Path) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {group.name for group in app.registered_groups}
    text = page.read_text()
    assert {*COMMAND.findall(text), *INLINE_COMMAND.findall(text)} <= known | groups


def test_no_page_names_this_machine() -> None:
    """Absolute paths of the one who wrote a page help nobody else."""
    home = str(ROOT)
    assert [page.name for page in PAGES if home in page.read_text()] == []


def test_the_licence_is_the_apache_licence_unmodified() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_what_an_example_leaves_behind_is_ignored_by_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "check-ignore", "--quiet", "examples/data/manifest.json"]
    assert subprocess.run(command, check=False).returncode == 0
