import pytest

from difalign.rollout import windows


def test_random_start_is_uniform_over_both_ends():
    drawn = [windows.random_start(3, epoch, low=1, high=6, size=3) for epoch in range(900)]
    counts = {start: drawn.count(start) for start in set(drawn)}
    assert set(counts) == {1, 2, 3}
    assert all(abs(count - 300) < 4 * (900 * 2 / 9) ** 0.5 for count in counts.values())


def test_random_start_is_a_function_of_its_key():
    starts = [windows.random_start(0, epoch, low=0, high=10, size=2) for epoch in range(30)]
    assert starts == [windows.random_start(0, epoch, low=0, high=10, size=2) for epoch in range(30)]
    assert starts != [windows.random_start(1, epoch, low=0, high=10, size=2) for epoch in range(30)]


@pytest.mark.golden
def test_mixgrpo_schedule():
    starts = [windows.progressive_start(call, stop=24, dwell=windows.constant_dwell(25)) for call in range(1, 1201)]
    assert starts[:24] == [0] * 24  # calls 1 to 24
    assert starts[24:49] == [1] * 25  # from call 25
    assert starts[: 24 * 25 - 1] == [call // 25 for call in range(1, 24 * 25)]
    assert starts[599] == 0  # call 600: the released code holds an empty window here until call 625
    assert max(starts) == 23


def test_no_window_is_empty():
    sizes = {start: windows.clipped_size(start, size=4, stop=24) for start in range(24)}
    assert sizes[22] == 2  # [22, 23]
    assert sizes[20] == 4
    assert min(sizes.values()) == 1
    with pytest.raises(ValueError, match="start=24"):
        windows.clipped_size(24, size=4, stop=24)


def test_disjoint_windows_move_by_their_size():
    starts = [windows.progressive_start(i, stop=10, stride=4, dwell=windows.constant_dwell(1)) for i in range(4)]
    assert starts == [0, 4, 8, 0]


@pytest.mark.golden
def test_dwell_decays():
    linear = windows.linear_dwell(25, stop=24)
    assert [linear(0), linear(12), linear(24)] == [25, 15, 6]
    exponential = windows.exponential_dwell(25)
    assert [exponential(start) for start in (0, 13, 14, 23)] == [25, 25, 23, 10]
    starts = [windows.progressive_start(i, stop=3, dwell=lambda start: 3 - start) for i in range(7)]
    assert starts == [0, 0, 0, 1, 1, 2, 0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: windows.random_start(0, 0, low=0, high=3, size=4), "no window of 4"),
        (lambda: windows.progressive_start(-1, stop=3, dwell=windows.constant_dwell(1)), "iteration=-1"),
        (lambda: windows.progressive_start(0, stop=3, dwell=windows.constant_dwell(0)), "at least 1"),
    ],
)
def test_bad_windows(build, words):
    with pytest.raises(ValueError, match=words):
        build()
