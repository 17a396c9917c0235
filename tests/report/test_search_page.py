from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from difalign.report.search_curve import best_of_series, reached_point
from difalign.report.search_page import reads, write_report
from difalign.report.search_records import read_results, read_scores
from tests.report.browser import probed
from tests.report.fake_search import PROMPTS, STEPS, fake_search, scores_of

_ADDRESS = re.compile(r"""(?:src|href|srcset|action|poster)\s*=\s*["']?\s*([^"'\s>]*)""", re.IGNORECASE)


def test_the_page_says_what_was_found_and_what_it_cost(tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run")
    page = write_report(folder)
    text = page.read_text(encoding="utf-8")
    assert page == folder / "report.html"
    scores = [line.winner.score for line in read_results(folder)]
    assert f'<span class="to">{np.mean(scores):.3f}</span>' in text
    for line in read_results(folder):
        assert f'<span class="value">{line.winner.score:.3f}</span>' in text
        assert f'src="{line.folder}/winner.png"' in text
    cost = read_scores(folder / "p00000").cost
    assert cost.nfe == 8 * 3 + 4 * 3 + 2 * 4
    row = re.search(r"Evaluations of the network</th>(.*?)</tr>", text).group(1)
    assert re.findall(r'class="n">([^<]*)<', row) == [str(cost.nfe), str(cost.nfe), str(cost.nfe * 4)]
    assert "exactly" in row
    assert "<blue>" not in text.replace("&lt;blue&gt;", "")
    assert "until σ 0.88" in text


def test_addresses_are_relative_and_below_the_page(tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run", prompts=["</script><script>alert(1)</script>", "a circle"])
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    addresses = _ADDRESS.findall(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert "p00001/winner.png" in addresses
    for address in addresses:
        assert address.startswith("data:") or (folder / address).is_file()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    assert data[0]["prompt"] == "</script><script>alert(1)</script>"
    assert data[0]["detail"]["seeds"][0] == str(2**62 + 1)  # as text: a number of JavaScript holds 53 bits


def test_failed_and_broken_prompts_are_named_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run", failed=PROMPTS[2:3])
    (folder / "p00000" / "looks" / "look1.png").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert "No winner for “three yellow stars”: the reward raised ValueError" in text
    assert "two red circles: p00000/scores.json: looks.1.sheet names looks/look1.png, which does not exist" in text
    details = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    assert [entry["detail"] is not None for entry in details] == [False, True, False, True]


def test_a_search_under_way_has_a_page(tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run")
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text(lines[0] + lines[1][:30])
    assert "3 of the prompts have no result" in write_report(folder).read_text(encoding="utf-8")
    (folder / "results.jsonl").unlink()
    assert "4 of the prompts have no result" in write_report(folder).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"run.json cannot be read"):
        write_report(tmp_path)


def test_the_curve_is_the_closed_form_where_all_were_finished() -> None:
    whole = [scores_of(prompt, i, candidates=6, keeps=()) for i, prompt in enumerate(PROMPTS)]
    curve = best_of_series(whole)
    assert curve.x[0] == STEPS
    assert curve.x[-1] == 6 * STEPS
    assert curve.y[0] == pytest.approx(np.mean([s for scores in whole for s in scores.finish.scores]))
    assert curve.y[-1] == pytest.approx(np.mean([scores.winner.score for scores in whole]))
    assert (np.diff(curve.y) > 0).all()


def test_a_pruned_search_has_a_point_and_no_curve() -> None:
    pruned = [scores_of(prompt, i) for i, prompt in enumerate(PROMPTS)]
    assert best_of_series(pruned) is None
    point = reached_point(pruned, "run")
    assert point.x.tolist() == [pruned[0].cost.nfe]
    assert point.y.tolist() == pytest.approx([np.mean([scores.winner.score for scores in pruned])])


def test_what_a_judge_reads_is_said_in_words() -> None:
    look, finish = scores_of("a prompt", 0).looks[0], scores_of("a prompt", 0).finish
    assert reads(look) == "guided estimate, decoded"
    assert reads(finish) == "the finished picture"


_KEYS = """
const pressed = (name) => new KeyboardEvent('keydown', {key: name, bubbles: true, cancelable: true});
const key = (name) => document.activeElement.dispatchEvent(pressed(name));
const title = () => document.querySelector('#panel h2').textContent;
const say = () => document.querySelector('.say').textContent;
"""


def test_a_browser_walks_the_page_by_keyboard(chromium: str, tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run")
    script = (
        _KEYS
        + """
    const seen = {start: title()};
    key('ArrowRight'); seen.right = title(); key('ArrowLeft'); seen.left = title();
    document.querySelector('.entry[aria-current="true"]').focus();
    key('ArrowDown'); key('ArrowDown'); seen.down = title(); seen.focus = document.activeElement.textContent;
    key('End'); seen.end = title(); key('Home'); seen.home = title(); seen.hash = location.hash;
    const stops = [...document.querySelectorAll('.tile[tabindex="0"]')]; seen.stops = stops.length;
    stops[0].focus(); seen.tile = say();
    key('ArrowRight'); seen.tileRight = say(); key('ArrowDown'); seen.tileDown = say();
    seen.followed = document.querySelectorAll('.tile.on').length; seen.still = title();
    document.activeElement.blur(); key('/'); seen.finding = document.activeElement.id;
    document.activeElement.value = 'GREEN square'; document.activeElement.dispatchEvent(new Event('input'));
    seen.shown = document.getElementById('shown').textContent; key('Enter'); seen.found = title();
    return seen;"""
    )
    seen = probed(chromium, write_report(folder), script, size="1200,900")
    assert [seen[step] for step in ("start", "right", "left", "down", "end", "home", "still")] == [
        *(PROMPTS[i] for i in (0, 1, 0, 2, 3, 0, 0)),
    ]
    assert PROMPTS[2] in seen["focus"]
    assert seen["hash"] == "#p0"
    scores = scores_of(PROMPTS[0], 0)
    winner = scores.winner
    assert seen["stops"] == 1
    assert seen["tile"].startswith(f"No. {winner.index}, the winner, seed {winner.seed}. stage 1, σ 0.88: rank ")
    assert seen["tile"].endswith(f"finished: rank 1 of 2 (score {winner.score:.3f}).")
    assert seen["tileRight"] == seen["tile"]  # the same candidate, one level on
    assert seen["tileDown"] != seen["tile"]
    assert seen["followed"] >= 2
    assert seen["finding"] == "find"
    assert seen["shown"] == "1 of 4"
    assert seen["found"] == PROMPTS[1]


def test_a_browser_shows_every_picture_on_any_width(chromium: str, tmp_path: Path) -> None:
    folder = fake_search(tmp_path / "run", candidates=20, keeps=(9, 3))
    script = """
    const images = [...document.images], count = (selector) => document.querySelectorAll(selector).length;
    const sheets = [...document.querySelectorAll('.tile image')].map(image => image.getAttribute('href'));
    const named = [...document.querySelectorAll('.tile, svg[role=img]')];
    return {broken: images.filter(image => !image.complete || !image.naturalWidth).length,
      sheets: [...new Set(sheets)].sort(), unnamed: named.filter(part => !part.getAttribute('aria-label')).length,
      tiles: count('.tile'), fell: count('.tile.fell'), links: count('.link'), won: count('.tile.win'),
      rows: count('#panel details tbody tr'), title: document.querySelector('#panel h2').textContent,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth};"""
    for size in ("1200,900", "500,900"):
        seen = probed(chromium, write_report(folder), script, size=size, fragment="#p1")
        assert seen == {
            "broken": 0,
            "sheets": [f"p00001/looks/{name}.png" for name in ("finish", "look0", "look1")],
            "tiles": 20 + 9 + 3,
            "fell": 11 + 6,
            "links": 9 + 3,
            "won": 3,
            "unnamed": 0,
            "overflow": seen["overflow"],
            "rows": 20,
            "title": PROMPTS[1],
        }
        assert seen["overflow"] <= 0
