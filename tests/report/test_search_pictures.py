from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difalign.report.search_pictures import (
    contact_sheet,
    fates,
    read_sheet,
    search_grid,
    sheet_columns,
    write_pictures,
)
from difalign.report.search_records import read_scores, write_scores
from tests.report.fake_search import look_pictures, picture, pictures_of, scores_of

WINNERS_FRAME = (214, 118, 8)


def test_a_contact_sheet_gives_its_tiles_back() -> None:
    for count in (1, 2, 5, 9):
        pictures = np.stack([np.asarray(picture(i)) for i in range(count)])
        sheet = contact_sheet(pictures)
        assert sheet.width == 12 * sheet_columns(count)


def test_tiles_of_a_saved_sheet_are_the_pictures_in_order(tmp_path: Path) -> None:
    pictures = np.stack([np.asarray(picture(i)) for i in range(5)])
    contact_sheet(pictures).save(tmp_path / "look0.png")
    tiles = read_sheet(tmp_path / "look0.png", 5)
    assert all(np.array_equal(np.asarray(tile), one) for tile, one in zip(tiles, pictures, strict=True))
    with pytest.raises(ValueError, match=r"look0.png of 36 x 24 does not hold 5 x 4 tiles"):
        read_sheet(tmp_path / "look0.png", 17)


def test_large_pictures_are_reduced_in_a_sheet() -> None:
    assert contact_sheet(np.zeros((2, 600, 300, 3), dtype=np.uint8)).size == (256, 256)


def test_everyone_has_one_fate_and_those_who_came_furthest_stand_first() -> None:
    scores = scores_of("a prompt", 0)
    groups = fates(scores)
    assert [group.title for group in groups] == [
        "Finished",
        "Fell at stage 2, sigma 0.61",
        "Fell at stage 1, sigma 0.88",
    ]
    assert [len(group.candidates) for group in groups] == [2, 2, 4]
    assert sorted(c for group in groups for c in group.candidates) == list(range(8))
    assert groups[0].candidates[0] == scores.winner.index
    for group in groups[1:]:
        assert not set(group.candidates) & set(group.look.kept)
        values = [group.look.score_of(candidate) for candidate in group.candidates]
        assert values == sorted(values, reverse=True)


def test_a_leader_left_by_a_limit_takes_the_others_with_it() -> None:
    scores = scores_of("a prompt", 0, keeps=(4,))
    (leader,) = scores.looks[0].kept[:1]
    at = scores.finish.index.index(leader)
    finish = replace(
        scores.finish,
        index=(leader,),
        scores=(scores.finish.scores[at],),
        components={},
        kept=(leader,),
    )
    groups = fates(replace(scores, finish=finish))
    assert [group.candidates for group in groups[:1]] == [(leader,)]
    assert sorted(c for group in groups for c in group.candidates) == list(range(8))


def test_the_grid_frames_the_winner_and_greys_those_who_fell() -> None:
    scores = scores_of("a prompt", 0)
    colours = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
        (255, 0, 255),
        (0, 255, 255),
        (9, 99, 9),
        (99, 9, 9),
    ]
    grid = search_grid(scores, {i: Image.new("RGB", (36, 36), colour) for i, colour in enumerate(colours)})
    pixels = np.asarray(grid).reshape(-1, 3)
    counts = {colour: int((pixels == colour).all(axis=1).sum()) for colour in colours}
    assert {i for i, colour in enumerate(colours) if counts[colour]} == set(scores.finish.index)
    assert all(counts[colours[i]] >= 96 * 96 for i in scores.finish.index)  # 36 pixels are enlarged
    assert int((pixels == WINNERS_FRAME).all(axis=1).sum()) == 4 * 4 * (108 + 4)
    nobody = replace(scores, winner=None, finish=replace(scores.finish, kept=()))
    without = np.asarray(search_grid(nobody, {0: picture(0)})).reshape(-1, 3)
    assert not (without == WINNERS_FRAME).all(axis=1).any()


def test_sixty_four_candidates_make_rows_of_eight() -> None:
    scores = scores_of("a prompt", 0, candidates=64, keeps=())
    grid = search_grid(scores, {i: picture(i, 36) for i in range(64)})
    assert 1000 < grid.width < 1300
    assert 1000 < grid.height < 1600


@pytest.mark.parametrize(("save", "count"), [("winner", 0), ("survivors", 2), ("all", 8)])
def test_pictures_are_saved_for_those_asked_for_and_say_what_they_are(tmp_path: Path, save: str, count: int) -> None:
    scores = scores_of("zwei <rote> Kreise", 0)
    written = write_pictures(tmp_path, scores, look_pictures(scores), pictures_of(scores.finish), save=save)
    write_scores(tmp_path, written)
    assert read_scores(tmp_path) == written
    assert len(written.candidates) == len(list((tmp_path / "candidates").glob("*"))) == count
    with Image.open(tmp_path / "winner.png") as winner:
        assert winner.text == {
            "prompt": "zwei <rote> Kreise",
            "index": str(scores.winner.index),
            "seed": str(scores.winner.seed),
            "score": str(scores.winner.score),
        }
        assert np.array_equal(np.asarray(winner), np.asarray(picture(scores.winner.index)))
    for candidate, name in written.candidates.items():
        with Image.open(tmp_path / name) as saved:
            assert saved.text["seed"] == str(scores.seeds[candidate])
            assert ("sigma" in saved.text) == (candidate not in scores.finish.index)


def test_a_look_without_pictures_has_no_sheet_and_the_fallen_an_empty_tile(tmp_path: Path) -> None:
    scores = scores_of("a prompt", 0)
    written = write_pictures(tmp_path, scores, [None, None], pictures_of(scores.finish))
    assert [look.sheet for look in written.looks] == [None, None]
    assert (tmp_path / "grid.png").is_file()
    with pytest.raises(ValueError, match="1 pictures of a look at 8 candidates"):
        write_pictures(tmp_path, scores, [pictures_of(scores.finish)[:1], None], pictures_of(scores.finish))
