"""The house's own rules: which way imports go, and that the pure core stays pure."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = [
    "ledger/amounts.py",
    "ledger/times.py",
    "ledger/events.py",
    "ledger/codec.py",
    "ledger/journal.py",
    "ledger/digests.py",
    "ledger/store.py",
    "ledger/flags.py",
    "ledger/statement.py",
    "ledger/order_rows.py",
    "ledger/projections/entries.py",
    "ledger/projections/accounts.py",
    "ledger/projections/orders.py",
    "ledger/projections/partition.py",
    "chat_bridge/messages.py",
    "chat_bridge/names.py",
    "chat_bridge/text.py",
]
PURE_MODULES = {path.removesuffix(".py").replace("/", ".") for path in PURE} | {
    "ledger.errors",
    "ledger._fold",  # see test_the_compiled_fold_has_no_clock_disk_or_chance
}
STANDARD = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "datetime",
    "decimal",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "operator",
    "re",
    "struct",
    "typing",
    "unicodedata",
}
LIBRARIES = {"msgspec", "pydantic", "pydantic_core"}  # pydantic: for types only
IMPURE_CALLS = {"open", "print", "input", "now", "today", "utcnow", "time", "monotonic", "random"}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, f"{path}: relative import"
            found.update(
                f"{node.module}.{alias.name}" if node.module == "ledger" else node.module
                for alias in node.names
            )
    return found


@pytest.mark.parametrize("path", PURE)
def test_the_pure_core_imports_only_itself(path: str) -> None:
    for name in imports_of(ROOT / path):
        allowed = name.split(".")[0] in STANDARD | LIBRARIES or name in PURE_MODULES
        assert allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", PURE)
def test_the_pure_core_has_no_clock_disk_or_chance(path: str) -> None:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert name not in IMPURE_CALLS, f"{path}:{node.lineno} calls {name}"


def test_the_compiled_fold_has_no_clock_disk_or_chance() -> None:
    sources = list((ROOT / "fold/src").glob("*.rs"))
    assert sources
    for path in sources:
        found = re.findall(
            r"std::(?:env|fs|io|net|process|thread|time)|println|rand::", path.read_text()
        )
        assert not found, f"{path} uses {found}"


def test_the_reference_shares_no_code_with_the_ledger() -> None:
    for path in ("tests/reference.py", "tests/strategies.py"):
        for name in imports_of(ROOT / path):
            assert name.split(".")[0] not in {"ledger", "replay", "chat_bridge"}, path


def test_only_one_module_touches_private_api_of_faust_and_aiokafka() -> None:
    for path in (ROOT / "ledger").rglob("*.py"):
        for name in imports_of(path):
            if name.split(".")[0] == "faust":
                assert path.name == "chunked.py", f"{path} imports {name}"


def test_every_module_says_what_it_is() -> None:
    for package in ("ledger", "replay", "chat_bridge", "bench", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            if path.read_text().strip():
                assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_registry_host_or_machine_path_is_named() -> None:
    words = ["pypi" + ".org", "maven" + ".org", "python" + "hosted", "/work" + "/", "/root" + "/"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            text = (ROOT / name).read_text(errors="ignore")
            for word in words:
                assert word not in text, f"{name} names {word}"
