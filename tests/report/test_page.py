from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from difalign.report.alarms import Alarm
from difalign.report.log import RunLog
from difalign.report.page import data_uri, write_report
from difalign.report.records import Evaluation, SampleRecord
from tests.report.browser import browse
from tests.report.fake_diagnostics import leaf_pictures, seen_at
from tests.report.fake_run import FakeRun

# Nothing a page may load with: data addresses only, and no element that fetches by itself.
_ADDRESS = re.compile(r"""(?:src|href|srcset|action|poster)\s*=\s*["']?\s*([^"'\s>]*)""", re.IGNORECASE)


class Text(HTMLParser):
    """Collects the visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def visible(page: str) -> str:
    parser = Text()
    parser.feed(page)
    return " ".join(" ".join(parser.parts).split())


def test_the_page_shows_the_result_the_curves_the_samples_and_the_configuration(fake_run: FakeRun) -> None:
    folder = fake_run()
    path = write_report(folder)
    page = path.read_text(encoding="utf-8")
    text = visible(page)
    summary = json.loads((folder / "summary.json").read_text())
    assert path == folder / "report.html"
    assert f"{summary['base']:.3f}" in text
    assert f"{summary['tuned']:.3f}" in text
    assert f"+{summary['gain']:.3f}" in text
    assert f"+{summary['gain_ci95'][0]:.3f} to +{summary['gain_ci95'][1]:.3f}" in text
    for words in (
        "Whole run 3 min 54 s",
        "Training 3 min 18 s",
        "57 600",
        "samples_per_prompt: 12",
        "Count pair",
        "train_flow_grpo.py seed=0",
    ):
        assert words in text
    for chart in (
        "Held-out score",
        "Reward in training",
        "Divergence",
        "ratio, mean",
        "Clip fraction",
        "Gradient norm",
    ):
        assert chart in text
    assert "Groups without variance" in text
    assert "Advantage clipped" in text  # a value the page knows nothing about is drawn
    assert "Groups (throughout) 10" in text  # and tabled if it never changes
    assert page.count('alt="base sample') == page.count('alt="tuned sample') == 20


def test_the_page_asks_for_nothing_from_elsewhere(fake_run: FakeRun) -> None:
    page = write_report(fake_run()).read_text(encoding="utf-8")
    addresses = _ADDRESS.findall(page)
    assert len(addresses) > 20
    assert all(address.startswith("data:") for address in addresses)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|<link(?! rel=\"icon\")", page)


def test_the_page_depends_on_the_folder_alone(fake_run: FakeRun) -> None:
    folder = fake_run()
    first = write_report(folder).read_bytes()
    (folder / "report.html").unlink()
    assert write_report(folder).read_bytes() == first


def test_a_run_under_way_says_so_and_compares_what_it_has(fake_run: FakeRun) -> None:
    text = visible(write_report(fake_run(finished=False, evaluations=(0, 20), rollouts=30)).read_text())
    assert "still going, or it stopped early" in text
    assert "So far, at rollout 20" in text
    assert "95 % interval" in text
    assert "1 min 55 s" in text


def test_a_run_that_crashed_at_once_still_has_a_page(tmp_path: Path) -> None:
    RunLog(tmp_path).write_config("seed: 3")
    text = visible(write_report(tmp_path).read_text())
    assert "No result yet" in text
    assert "seed: 3" in text


def test_values_that_are_not_finite_are_explained_and_never_printed_bare(fake_run: FakeRun) -> None:
    folder = fake_run(finished=False, evaluations=(0,), rollouts=3)
    RunLog(folder).append_metrics({"rollout": 3, "update": 6, "grad_norm": float("nan"), "loss": float("inf")})
    RunLog(folder).write_summary({"gain": float("nan"), "base": 0.5, "odd": float("nan"), "per_category": {}})
    page = write_report(folder).read_text()
    text = visible(page)
    assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE)
    assert "Some values were not finite numbers (see Gradient norm, Loss)." in text
    assert "1 value is not finite (overflow or division by zero) and left out: rollout 3." in text
    assert "could not be computed" in text


def test_an_interval_around_zero_is_said_in_words(fake_run: FakeRun) -> None:
    folder = fake_run(rollouts=1)
    summary = {"base": 0.5, "tuned": 0.52, "gain": 0.02, "gain_ci95": [-0.01, 0.05]}
    RunLog(folder).write_summary(summary)
    assert "The change of +0.020 (95 % interval −0.010 to +0.050) is not distinguishable from 0." in visible(
        write_report(folder).read_text()
    )


def test_prompts_cannot_inject_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script> \" onload='x' </style>"
    for rollout, label in ((0, "base"), (1, "tuned")):
        record = SampleRecord(nasty, nasty, 0, {"total": 0.5, nasty: 0.1}, 0)
        RunLog(tmp_path).write_evaluation(Evaluation(rollout, label, (record,)), images=np.zeros((1, 3, 8, 8)))
        RunLog(tmp_path).append_metrics({"rollout": rollout, nasty: rollout})
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert page.count("<script>") == page.count("</style>") == 1
    assert "alert(1)" in visible(page)


def test_evaluations_that_do_not_match_are_a_problem_not_a_crash(tmp_path: Path) -> None:
    for rollout, label in ((0, "base"), (1, "tuned")):
        record = SampleRecord("p", "k", rollout, {"total": 0.5}, 0)
        RunLog(tmp_path).write_evaluation(Evaluation(rollout, label, (record,)))
    assert "The evaluations cannot be compared" in visible(write_report(tmp_path).read_text())


def test_grids_that_cannot_be_paired_are_shown_whole(fake_run: FakeRun) -> None:
    folder = fake_run(finished=False, evaluations=(0,), rollouts=1)
    page = write_report(folder).read_text()
    assert data_uri((folder / "evaluations" / "000000.png").read_bytes(), "image/png") in page
    assert "base, rollout 0" in visible(page)


def test_a_long_run_of_large_images_stays_a_small_page(fake_run: FakeRun) -> None:
    folder = fake_run(rollouts=1, evaluations=(0, 60), size=384)
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({"rollout": i, "update": i, "kl": rng.random(), "grad_norm": rng.random()}) for i in range(20_000)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert write_report(folder).stat().st_size < 2_000_000


def test_templates_lie_in_the_package_and_are_plain_files() -> None:
    from importlib.resources import files

    templates = files("difalign.report") / "templates"
    for name in ("report.html.j2", "trees.html.j2", "style.css", "tooltip.js"):
        assert templates.joinpath(name).is_file()


def with_diagnostics(folder: Path) -> Path:
    """The run, which was looked at twice."""
    for rollout in (0, 50):
        RunLog(folder).write_diagnostics(seen_at(rollout), leaf_pictures(seen_at(rollout)))
    return folder


def test_the_page_shows_single_steps_and_trees(fake_run: FakeRun) -> None:
    page = write_report(with_diagnostics(fake_run(rollouts=2))).read_text(encoding="utf-8")
    text = visible(page)
    for words in (
        "Where the signal is",
        "The gradient of the last is 4 times that of the first, 2 times with the step weights.",
        "Spread of the ratio",
        "What grew in rollout 50",
        "a red <circle>",
        "1 of 4 start noises, 9 samples",
        "trained, better than its group",
    ):
        assert words in text
    assert page.count('role="img" aria-label="sample, total ') == 2 * (9 + 8)
    assert page.count("<image href=") == 2 * (9 + 8)
    assert "<circle>" not in page
    assert all(address.startswith("data:") for address in _ADDRESS.findall(page))
    without = write_report(fake_run("other", rollouts=2)).read_text(encoding="utf-8")
    assert 'id="signal"' not in without
    assert 'id="trees"' not in without


def test_trees_without_readable_pictures_are_a_problem_not_a_crash(fake_run: FakeRun) -> None:
    folder = with_diagnostics(fake_run(rollouts=2))
    (folder / "diagnostics" / "000050.png").write_bytes(b"cut off")
    text = visible(write_report(folder).read_text(encoding="utf-8"))
    assert "The trees of rollout 50 cannot be shown: 000050.png is not a readable grid" in text
    assert "What grew in rollout 0," in text


def test_interval_and_kept_samples_have_panels(fake_run: FakeRun) -> None:
    folder = fake_run(rollouts=2)
    assert "Trained interval" not in visible(write_report(folder).read_text(encoding="utf-8"))
    for rollout in range(2, 5):
        figures = {"interval_start": 12 - rollout, "kept": 7, "kept_positive": 4, "kept_negative": 3}
        RunLog(folder).append_metrics({"rollout": rollout, "update": 2 * rollout, **figures})
    text = visible(write_report(folder).read_text(encoding="utf-8"))
    assert "Trained interval" in text
    assert "Kept samples" in text
    assert "Kept positive 4" in text


def test_a_browser_shows_it_without_an_error(chromium: str, fake_run: FakeRun) -> None:
    folder = with_diagnostics(fake_run())
    page = write_report(folder)
    tuned = json.loads((folder / "summary.json").read_text())["tuned"]
    # The page reports on itself: how charts respond to the pointer and how wide it lays out on a phone.
    probe = """
    <script>
    const box = document.querySelector('figure[data-chart] .box'), frame = box.getBoundingClientRect();
    box.dispatchEvent(new PointerEvent('pointermove', {clientX: frame.left + frame.width - 1, bubbles: true}));
    const images = [...document.images];
    document.body.dataset.probe = JSON.stringify({
      tip: box.querySelector('.tip').innerText, shown: !box.querySelector('.tip').hidden,
      broken: images.filter(image => !image.complete || !image.naturalWidth).length, images: images.length,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      requests: performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length,
      trees: [...document.querySelectorAll('#trees > .trees .tree svg')].map(tree => {
        const frame = tree.getBoundingClientRect(), inside = [...tree.querySelectorAll('.leaf, .move, text')];
        return inside.every(part => { const b = part.getBoundingClientRect();
          return b.left >= frame.left - 1 && b.right <= frame.right + 1 && b.bottom <= frame.bottom + 1; });
      }),
      charts: [...document.querySelectorAll('.curve')].filter(c => c.getBoundingClientRect().width > 50).length,
    });
    </script>"""
    page.write_text(page.read_text().replace("</body>", probe + "</body>"))
    for size in ("1200,900", "500,900"):
        done = browse(chromium, page, "--dump-dom", f"--window-size={size}")
        found = json.loads(re.findall(r'data-probe="([^"]*)"', done.stdout)[-1].replace("&quot;", '"'))
        assert "CONSOLE" not in done.stderr
        assert found["shown"]
        assert found["tip"].startswith(f"rollout 60\nTotal {tuned:.4g}")
        assert (found["broken"], found["images"]) == (0, 40)
        assert found["overflow"] <= 0
        assert found["requests"] == 0
        assert found["charts"] >= 12
        assert found["trees"] == [True, True]
        for section in ("result", "samples", "kinds", "curves", "signal", "trees", "configuration", "environment"):
            assert f'id="{section}"' in done.stdout


def test_alarms_stand_on_the_page_with_counts_and_lines(fake_run: FakeRun) -> None:
    folder = fake_run()
    assert 'id="alarms"' not in write_report(folder).read_text(encoding="utf-8")
    log = RunLog(folder)
    for update in range(40):
        log.append_alarm(Alarm("kl_drift", update // 2, update, seen=f"KL <{update}>", remedy="raise beta"))
    log.append_alarm(Alarm("export_differs", 20, 40, seen="other pictures", remedy="use a checkpoint"))
    text = visible(write_report(folder).read_text(encoding="utf-8"))
    assert "Alarms 41" in text
    assert "Kl drift 40 ×, Export differs 1 ×." in text
    assert "kl drift rollout 14, update 29 KL <29>; raise beta" in text
    assert "update 30" not in text
    assert "and 11 more in alarms.jsonl" in text
