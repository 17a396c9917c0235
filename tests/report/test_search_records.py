from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from difalign.report.search_records import (
    CostRecord,
    ResultLine,
    WinnerRecord,
    append_result,
    read_results,
    read_run_record,
    read_scores,
    write_run,
    write_scores,
)
from tests.report.fake_search import PROMPTS, fake_search, picture, run_of, scores_of

LINE = ResultLine("k", "a prompt", "p00000", WinnerRecord(1, 2, 0.5), None, CostRecord(10, 2, 2, 1, None, 0.1), 0.2)


def changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_what_is_written_is_read_back_with_seeds_of_63_bits(tmp_path: Path) -> None:
    folder = fake_search(tmp_path)
    for number, prompt in enumerate(PROMPTS):
        scores = scores_of(prompt, number)
        read = read_scores(folder / f"p{number:05d}")
        assert [look.sheet for look in (*read.looks, read.finish)] == [
            f"looks/{name}.png" for name in ("look0", "look1", "finish")
        ]
        looks = tuple(replace(look, sheet=None) for look in read.looks)
        assert replace(read, looks=looks, finish=replace(read.finish, sheet=None)) == scores
        assert scores.seeds[0] > 2**62
        assert scores.finish.score_of(scores.winner.index) == scores.winner.score
    assert read_run_record(folder) == run_of(PROMPTS, scores_of(PROMPTS[0], 0))
    assert [line.prompt for line in read_results(folder)] == list(PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("prompt"), r"p00000/scores.json: prompt: Field required"),
        (lambda d: d.update(extra=1), r"extra: .*"),
        (lambda d: d["looks"][0].update(step="2"), r"looks.0.step: .*integer"),
        (lambda d: d["looks"][0].update(sigma=-1.0), r"looks.0.sigma: .*greater than 0"),
        (lambda d: d["finish"]["index"].__setitem__(0, 99), r"finish.index and who was alive before .* candidate 99"),
        (lambda d: d["looks"][0]["kept"].pop(), r"looks.1.index and who was alive before differ in candidate \d"),
        (lambda d: d["looks"][0]["scores"].pop(), r"looks.0.scores has 7 entries for 8 candidates"),
        (lambda d: d["looks"][0]["components"]["count"].pop(), r"looks.0.components.count has 7 entries"),
        (lambda d: d["looks"][0]["kept"].__setitem__(0, 99), r"looks.0.kept"),
        (lambda d: d["looks"][0].update(kept=[]), r"looks.0.kept is empty"),
        (lambda d: d["looks"][0].update(sigma=None), r"looks.0.sigma is None"),
        (lambda d: d["looks"][0]["errors"].update({"99": "bad"}), r"looks.0.errors is \[99\]"),
        (lambda d: d["looks"][1].update(step=0), r"looks stand at steps \[2, 0\], which do not rise"),
        (lambda d: d["looks"][0].update(sheet="looks/look9.png"), r"looks.0.sheet names looks/look9.png, which"),
        (lambda d: d["looks"][0].update(sheet="../look0.png"), r"looks.0.sheet is '../look0.png'; it must be"),
        (lambda d: d.update(candidates={"99": "candidates/99.png"}), r"candidates.99 has a picture, but there is no"),
        (lambda d: d["winner"].update(seed=1), r"winner.seed is not that of candidate"),
        (lambda d: d["winner"].update(score=9.5), r"winner.score is 9.5, but finish says 0"),
        (lambda d: d.update(winner=None), r"finish.kept is \[\d\] and the winner \[\]"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = fake_search(tmp_path, prompts=PROMPTS[:1]) / "p00000"
    changed(folder / "scores.json", change)
    with pytest.raises(ValueError, match=message):
        read_scores(folder)


def test_a_winner_that_did_not_win_is_refused_on_reading_and_on_writing(tmp_path: Path) -> None:
    scores = scores_of(PROMPTS[0], 0)
    loser = next(i for i in scores.finish.index if i != scores.winner.index)
    wrong = replace(
        scores,
        winner=WinnerRecord(loser, scores.seeds[loser], scores.finish.score_of(loser)),
        finish=replace(scores.finish, kept=(loser,)),
    )
    message = rf"winner.index is {loser} with .*, but candidate {scores.winner.index} has"
    with pytest.raises(ValueError, match=message):
        write_scores(tmp_path, wrong)
    write_scores(
        tmp_path, replace(wrong, ranked_by="rank_sum")
    )  # where ranks decide, the highest sum of scores need not win
    picture(0).save(tmp_path / "winner.png")
    changed(tmp_path / "scores.json", lambda d: d.update(ranked_by="score"))
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path)
    with pytest.raises(ValueError, match=r"winner is null, but candidate"):
        write_scores(tmp_path, replace(scores, winner=None, finish=replace(scores.finish, kept=())))


def test_a_winner_without_its_picture_is_an_error(tmp_path: Path) -> None:
    folder = fake_search(tmp_path, prompts=PROMPTS[:1]) / "p00000"
    (folder / "winner.png").unlink()
    with pytest.raises(ValueError, match=r"winner names winner.png, which does not exist"):
        read_scores(folder)


def test_of_equal_scores_the_lower_index_wins(tmp_path: Path) -> None:
    scores = scores_of(PROMPTS[0], 0)
    same = replace(scores.finish, scores=(0.5,) * len(scores.finish.index))
    low, high = min(same.index), max(same.index)
    write_scores(
        tmp_path,
        replace(scores, finish=replace(same, kept=(low,)), winner=WinnerRecord(low, scores.seeds[low], 0.5)),
    )
    with pytest.raises(ValueError, match=f"but candidate {low} has 0.5"):
        write_scores(
            tmp_path,
            replace(scores, finish=replace(same, kept=(high,)), winner=WinnerRecord(high, scores.seeds[high], 0.5)),
        )


def test_a_torn_last_line_is_ignored_and_cut_on_appending(tmp_path: Path) -> None:
    assert read_results(tmp_path) == ()
    append_result(tmp_path, LINE)
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    assert read_results(tmp_path) == (LINE,)
    append_result(tmp_path, replace(LINE, key="next"))
    assert [line.key for line in read_results(tmp_path)] == ["k", "next"]
    assert b"torn" not in (tmp_path / "results.jsonl").read_bytes()


def test_a_broken_whole_line_is_named(tmp_path: Path) -> None:
    append_result(tmp_path, LINE)
    append_result(tmp_path, replace(LINE, error="why"))
    with pytest.raises(ValueError, match=r"results.jsonl line 2: a prompt has either a winner or an error"):
        read_results(tmp_path)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seconds"):
        append_result(tmp_path, replace(LINE, seconds=float("nan")))
    assert not (tmp_path / "results.jsonl").exists()


def test_a_run_names_what_decides_its_results(tmp_path: Path) -> None:
    run = run_of(PROMPTS, scores_of(PROMPTS[0], 0))
    write_run(tmp_path, run)
    changed(tmp_path / "run.json", lambda d: d["resolved"].pop("seed"))
    with pytest.raises(ValueError, match=r"run.json: resolved.seed is missing"):
        read_run_record(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_run_record(tmp_path / "nowhere")
