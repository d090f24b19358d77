"""What `import cv_pipeline` offers: every name leads somewhere, editors see the same names, and importing
costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cv_pipeline

SOURCE = ast.parse(Path(cv_pipeline.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(cv_pipeline._NAMES))
def test_every_name_is_the_thing_of_its_module(name):
    module, _, attribute = cv_pipeline._NAMES[name].partition(":")
    found = getattr(cv_pipeline, name)
    assert found is getattr(sys.modules[f"cv_pipeline.{module}"], attribute or name)


def test_editors_see_the_same_names():
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    seen = {a.asname or a.name: (node.module, a.name) for node in block.body for a in node.names}
    told = {
        n: (f"cv_pipeline.{m.partition(':')[0]}", m.partition(":")[2] or n)
        for n, m in cv_pipeline._NAMES.items()
    }
    assert seen == told


def test_an_unknown_name_is_an_attribute_error_that_lists_what_is_there():
    with pytest.raises(AttributeError, match="'Detection'; it offers .*Detections"):
        getattr(cv_pipeline, "Detection")  # noqa: B009


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, cv_pipeline; print([m for m in ('numpy', 'cv2', 'onnxruntime', 'scipy', 'pydantic') "
        "if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
