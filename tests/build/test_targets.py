"""A target is imported, or its absence is told apart from that of a library it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.build.targets import check_options, check_target, resolve_target
from difalign.core.errors import ConfigError


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "user_targets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mod.py").write_text("class Mine:\n    pass\n")
    (package / "needy.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "user_targets"


def test_user_class(user_package: str):
    found = resolve_target(f"{user_package}.mod:Mine")
    assert isinstance(found, type)
    assert found.__name__ == "Mine"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("user_targets.mod", "must be written package.module:Class"),
        ("user_targets.mod:", "must be written package.module:Class"),
        ("user_targets.mood:Mine", "no module 'user_targets.mood'"),
        ("nowhere.mod:Mine", "no module 'nowhere'; .*PYTHONPATH"),
        ("user_targets.mod:Mime", "has no 'Mime'; did you mean 'Mine'"),
    ],
)
def test_faults(user_package: str, target: str, said: str):
    with pytest.raises(ConfigError, match=said):
        resolve_target(target)


def test_package_that_is_there_is_not_imported_to_say_so(user_package: str):
    check_target(f"{user_package}.needy:Mine")
    with pytest.raises(ConfigError, match=r"'nowhere\.mod:Mine': there is no module 'nowhere'; .*PYTHONPATH"):
        check_target("nowhere.mod:Mine")


def test_options_that_are_not_taken():
    def plain(source: str, *, strength: float = 1.0) -> None: ...

    def open_to_all(**options: float) -> None: ...

    check_options("a:plain", plain, ["strength"])
    check_options("a:open", open_to_all, ["anything"])
    with pytest.raises(ConfigError, match=r"'a:plain': options\.strenght: unknown option; did you mean 'strength'\?"):
        check_options("a:plain", plain, ["strenght"])


def test_missing_dependency_is_not_blamed_on_the_target(user_package: str):
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        resolve_target(f"{user_package}.needy:Mine")
