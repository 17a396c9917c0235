"""Progress: bars on a terminal, lines elsewhere, silence off the main process, and never on standard output."""

from __future__ import annotations

import pytest
from rich.table import Table

from difalign.train import progress
from difalign.train.progress import progress_view


@pytest.fixture
def plain_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, whatever the environment of the tests says."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def drive(*, is_main: bool) -> None:
    """What a run tells its view."""
    with progress_view(is_main=is_main) as view:
        view.note("held-out base: 0.5000 over 8 samples")
        for rollout in range(1, 4):
            view.phase("sampling", 5, 10)
            view.run(rollout, 3, f"reward {rollout / 10:.4f}")


def test_only_the_main_process_speaks(capfd: pytest.CaptureFixture[str], terminal: None) -> None:
    drive(is_main=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("plain_output", "clock")
def test_lines_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    drive(is_main=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "held-out base: 0.5000 over 8 samples",
        "rollout 1/3  reward 0.1000",  # the first at once
        "rollout 3/3  reward 0.3000",  # the last in any case
    ]


@pytest.mark.usefixtures("plain_output")
def test_lines_keep_ten_seconds_apart(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress_view(is_main=True) as view:
        for rollout in range(1, 41):
            view.run(rollout, 1000, "x")
            clock.now += 3.0
    shown = [int(line.split()[1].split("/")[0]) for line in capfd.readouterr().err.splitlines()]
    assert shown == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]


@pytest.mark.usefixtures("plain_output")
def test_phases_make_lines_where_the_outer_bar_seldom_moves(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress_view(is_main=True, unit="stage", phases=True) as view:
        view.run(0, 2, "generate")
        for rows in range(1, 10):
            clock.now += 4.0
            view.phase("rows", rows, 9)
        view.run(2, 2, "done")
    assert capfd.readouterr().err.splitlines() == [
        "stage 0/2  generate",
        "rows 3/9",
        "rows 6/9",
        "rows 9/9",
        "stage 2/2  done",
    ]


@pytest.mark.usefixtures("plain_output")
def test_long_lines_are_not_broken(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with progress_view(is_main=True) as view:
        view.note("word " * 60)
        view.run(1, 1, "figure " * 60)
    assert len(capfd.readouterr().err.splitlines()) == 2


@pytest.mark.usefixtures("plain_output")
@pytest.mark.parametrize("text", ["report: runs/[red]/report.html", "runs/x[/bold]/y", "runs/:smile:/report.html"])
def test_notes_are_text_and_not_markup(capfd: pytest.CaptureFixture[str], text) -> None:
    with progress_view(is_main=True) as view:
        view.note(text)
        view.run(1, 1, text)
    assert capfd.readouterr().err.splitlines() == [text, f"rollout 1/1  {text}"]


@pytest.mark.usefixtures("terminal")
def test_nested_bars_on_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_view(is_main=True) as view:
        view.run(3, 12, "reward 0.1234")
        view.phase("sampling", 5, 10)
        view.note("report: runs/[x]/:smile:.html")
    out, err = capfd.readouterr()
    assert out == ""
    with progress_view(is_main=True, unit="stage") as view:
        view.run(1, 4, "label")
    assert "stages" in capfd.readouterr().err
    for shown in ("rollouts", "3/12", "reward 0.1234", "sampling", "5/10", "report: runs/[x]/:smile:.html"):
        assert shown in err


@pytest.mark.parametrize("kind", ["plain_output", "terminal"])
def test_errors_pass_through_and_the_terminal_is_left_in_order(kind, request, capfd) -> None:
    request.getfixturevalue(kind)

    def fail() -> None:
        with progress_view(is_main=True) as view:
            view.run(1, 2, "x")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    err = capfd.readouterr().err
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h")  # a hidden cursor comes back


@pytest.mark.parametrize(
    ("kind", "is_main", "shown"), [("plain_output", True, 1), ("terminal", True, 1), ("terminal", False, 0)]
)
def test_tables_stay_on_the_main_process(kind, is_main, shown, request, capfd) -> None:
    request.getfixturevalue(kind)
    table = Table("prompts")
    table.add_row("single")
    with progress_view(is_main=is_main) as view:
        view.show(table)
    out, err = capfd.readouterr()
    assert (out, err.count("single")) == ("", shown)
