"""Builds the compiled fold (`fold/`, Rust) when the package is built or installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledFold(BuildHookInterface[Any]):
    """Puts `ledger/_fold` beside the Python modules."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile it; `version` is "editable" for an installation that runs from the checkout."""
        root = Path(self.root)
        subprocess.run(
            [os.environ.get("CARGO", "cargo"), "build", "--release", "--locked", "--quiet"],
            cwd=root / "fold",
            env={**os.environ, "PYO3_PYTHON": sys.executable},
            check=True,
        )
        name = f"_fold{sysconfig.get_config_var('EXT_SUFFIX')}"
        target = root / "ledger" / name
        unfinished = target.with_suffix(".new")
        shutil.copyfile(root / "fold" / "target" / "release" / "libledger_fold.so", unfinished)
        unfinished.replace(target)  # a process that has the old one mapped goes on with it
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"ledger/{name}")
