"""Importing the package and asking for help load no heavy library; seen in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ("train", "plan", "score", "status", "doctor", "config", "pipelines", "rewards")
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "scipy")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def loaded_by(body: str) -> set[str]:
    """The heavy libraries that ``body`` loads."""
    result = run(
        f"import sys\n{body}\n"
        f"sys.stderr.write('\\n' + ' '.join(['loaded:', *(name for name in {HEAVY!r} if name in sys.modules)]))"
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.splitlines()[-1].removeprefix("loaded:").split())


def test_the_probe_sees_a_heavy_library():
    assert "scipy" in loaded_by("import scipy")


def test_import_is_light():
    assert not loaded_by("import difalign\ndifalign.__version__, dir(difalign)")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_is_light(arguments: list[str]):
    assert not loaded_by(
        f"sys.argv = ['difalign', *{arguments!r}]\n"
        "from difalign.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )


def test_public_names_resolve():
    import difalign

    for name in difalign.__all__:
        assert getattr(difalign, name) is not None
    for name in set(difalign.__all__) - {"__version__"}:
        assert callable(getattr(difalign, name))


def test_unknown_public_name_is_an_error_that_lists_the_known_ones():
    import difalign

    with pytest.raises(AttributeError, match="load_pipeline"):
        _ = difalign.load_pipelnie  # pyright: ignore[reportAttributeAccessIssue]
