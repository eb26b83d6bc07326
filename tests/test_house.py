"""The five package names are common words: another installed package must not answer for ours."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("annotate", "curate", "pipelines", "shared", "train")
HEAVY = ("torch", "ray", "cv2", "numpy", "diffusers", "pydantic", "pyarrow")


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_resolve_to_this_checkout(name):
    assert Path(importlib.import_module(name).__file__).resolve().parent == ROOT / name


def test_the_command_line_imports_nothing_heavy():
    code = f"import sys, pipelines.cli; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_tests_that_documents_name_exist():
    named = {
        name for page in ROOT.glob("docs/*.md") for name in re.findall(r"(test_\w+\.py)::(test_\w+)", page.read_text())
    }
    assert len(named) > 20
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name for name in named if f"def {name[1]}(" not in files.get(name[0], "")} == set()
