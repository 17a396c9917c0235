"""Importing the package and asking for help stay light; measured in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "scipy", "matplotlib")
# Seconds of processor time, which a busy machine does not stretch.
IMPORT_BUDGET = 0.3
HELP_BUDGET = 0.5


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def measured(body: str) -> tuple[float, set[str]]:
    """Processor seconds of ``body`` and the heavy libraries that it loaded."""
    result = run(
        "import sys, time\nstart = time.process_time()\n"
        f"{body}\n"
        "spent = time.process_time() - start\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write('\\n' + ' '.join([str(spent), *loaded]))"
    )
    assert result.returncode == 0, result.stderr
    spent, *loaded = result.stderr.splitlines()[-1].split()
    return float(spent), set(loaded)


def test_import_is_light():
    spent, loaded = measured("import difalign\ndifalign.__version__, dir(difalign)")
    assert not loaded
    assert spent < IMPORT_BUDGET


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_is_light(arguments: list[str]):
    spent, loaded = measured(
        f"sys.argv = ['difalign', *{arguments!r}]\n"
        "from difalign.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert not loaded
    assert spent < HELP_BUDGET


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
