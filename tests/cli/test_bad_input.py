"""Bad input ends in one clear message on stderr and exit code 2, before a model is loaded; nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from difalign.cli import app, train_flow_grpo
from tests.folders import file_contents
from tests.house.repository import ROOT

SECONDS = 2.0  # processor time of a whole process


@dataclass(frozen=True)
class Bad:
    """Arguments of ``train``, and what the message must hold: the value or key, and the remedy."""

    name: str
    arguments: tuple[str, ...]
    said: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()  # written into the working folder first


def one(name: str, argument: str, *said: str) -> Bad:
    return Bad(name, (argument,), said)


def in_file(name: str, content: str, *said: str) -> Bad:
    return Bad(name, ("--config", "my.yaml"), said, (("my.yaml", content),))


def with_prompts(name: str, file: str, content: str, *said: str) -> Bad:
    return Bad(name, (f"prompts.train={file}",), said, ((file, content),))


CASES = [
    # keys
    one("misspelt key", "sampling.stepz=4", "sampling.stepz", "unknown key", "did you mean sampling.steps?"),
    one("misspelt section", "samplin.steps=4", "samplin: unknown key", "did you mean sampling?"),
    one("key without its section", "steps=4", "steps: unknown key", "sampling.steps or evaluation.steps"),
    one("key like no other", "zzzz=4", "zzzz: unknown key", "known: name, seed"),
    one("misspelt key of a reward", "rewards.verifier.weigth=2", "did you mean rewards.verifier.weight?"),
    one("option of another plan", "sampling.plan.children=3", "sampling.plan.children", "branch or split or cascade"),
    one("no equals sign", "sampling.steps", "'sampling.steps'", "key.sub=value"),
    one("dashes", "--sampling.steps=4", "without dashes", "'sampling.steps=4'"),
    one("empty key", "sampling..steps=4", "'sampling..steps=4'", "empty key"),
    Bad("key twice", ("seed=1", "seed=2"), ("'seed=2'", "'seed=1'", "give one")),
    # types and ranges
    one("text for a number", "sampling.steps=four", "sampling.steps = 'four'", "an integer >= 1"),
    one("fraction for an integer", "sampling.steps=1.5", "sampling.steps = 1.5", "an integer >= 1"),
    one("truth for a number", "training.learning_rate=true", "training.learning_rate = true", "a number > 0"),
    one("number for text", "pipeline=3", "pipeline = 3", "must be text", "quotes"),
    one("number for a section", "training=3", "training = 3", "a mapping with the keys trainable, lora"),
    one("zero", "sampling.samples_per_prompt=0", "sampling.samples_per_prompt = 0", ">= 1"),
    one("above one", "objective.timestep_fraction=1.5", "objective.timestep_fraction = 1.5", "> 0 and <= 1"),
    one("not a number", "training.learning_rate=.nan", "training.learning_rate = nan", "> 0"),
    one("one beta", "training.betas=[0.9]", "training.betas = [0.9]", "2 values"),
    one(
        "unknown choice", "sampling.rule=flow_grp", "'flow_grp'", "flow_grpo, dance, wan, cps, ddim_eta", "did you mean"
    ),
    one("unknown plan", "sampling.plan.kind=windw", "'windw'", "plain, window, branch, split, cascade"),
    one("value that is no YAML", "prompts.train=[a", "the value of prompts.train", "not YAML", "quote it"),
    one("name with a slash", "name=a/b", "name = 'a/b'", "without spaces or slashes"),
    # options that do not go together
    one("no step to train", "sampling.steps=1", "timestep_fraction = 0.6", "sampling.steps=2 or more"),
    Bad(
        "KL without a kind",
        ("objective.kl.kind=none", "objective.kl.beta=0.1"),
        ("objective.kl.beta = 0.1", "choose a kind"),
    ),
    one("group of one", "sampling.samples_per_prompt=1", "sampling.samples_per_prompt = 1", ">= 2"),
    one("seed groups of one", "objective.advantage.group_by=seed", "group_by = seed", "group_by=prompt"),
    Bad(
        "window past the end",
        ("sampling.plan.kind=window", "sampling.plan.high=9"),
        ("sampling.plan.high = 9", "use at most 4"),
    ),
    Bad(
        "window too wide",
        ("sampling.plan.kind=window", "sampling.plan.size=6", "sampling.plan.high=4"),
        ("sampling.plan.size = 6", "use size <= 4"),
    ),
    Bad("noise above one", ("sampling.rule=cps", "sampling.noise_level=1.5"), ("noise_level = 1.5", "at most 1")),
    # files
    Bad(
        "no such configuration", ("--config", "dem"), ("'dem' is unknown", "did you mean 'demo'?", "flow-grpo-tiny-sd3")
    ),
    Bad("missing file", ("--config", "no/such.yaml"), ("no/such.yaml", "no such file", "demo")),
    in_file("malformed YAML", "sampling:\n  steps: [1\nseed: 0\n", "my.yaml, line 3", "not YAML"),
    in_file("key twice in a file", "seed: 0\nname: a\nseed: 1\n", "my.yaml, line 3", "'seed' is given twice"),
    in_file("empty file", "", "my.yaml", "is empty", "pipeline: tiny-sd3"),
    in_file("list", "- 1\n- 2\n", "my.yaml", "key: value"),
    in_file("missing base", "base: other.yaml\n", "base = other.yaml", "no such file"),
    Bad(
        "base of a base",
        ("--config", "my.yaml"),
        ("b.yaml: has a base itself", "name that base in my.yaml"),
        (("my.yaml", "base: b.yaml\n"), ("b.yaml", "base: c.yaml\n"), ("c.yaml", "seed: 1\n")),
    ),
    one("missing prompt file", "prompts.train=no.txt", "prompts.train = 'no.txt'", "no such file"),
    with_prompts("empty prompt file", "p.txt", "\n# nothing\n", "p.txt: holds no prompt", "write one a line"),
    with_prompts("control characters", "p.txt", "a red circle\na\x00b\n", "p.txt, line 2", "control characters"),
    with_prompts("repeated prompt", "p.txt", "a red circle\n\na red circle\n", "p.txt, line 3", "repeats line 1"),
    with_prompts("broken JSON", "p.jsonl", '{"prompt": "a red circle"}\n{"prompt"\n', "p.jsonl, line 2", "is not JSON"),
    with_prompts("JSON without a prompt", "p.jsonl", '{"text": "a"}\n', "p.jsonl, line 1", 'the text "prompt"'),
    with_prompts("too few prompts", "p.txt", "a red circle\n", "holds 1 prompts", "sampling.prompts_per_update=1"),
    with_prompts("prompt beyond the reward", "p.txt", "a cat\n", "rewards.verifier cannot score 'a cat'"),
    # cards
    one("unknown pipeline", "pipeline=tiny-sd4", "'tiny-sd4'", "did you mean 'tiny-sd3'?", "known: ", "sd35-medium"),
    one("missing card", "pipeline=./my.yaml", "./my.yaml: no such file", "tiny-sd3"),
    one("unknown reward", "rewards.verifyer.weight=1", "'verifyer'", "did you mean 'verifier'?", "known: ", "verifier"),
    one("unknown option", "rewards.verifier.options.strict=1", "options.strict", "did you mean 'strict_share'?"),
    one("option of the wrong type", "rewards.verifier.options.strict_share=half", "'half'", "its default, 0.5"),
    one("no reward left", "rewards.verifier=null", "rewards = {}", "not empty"),
    one("size off the grid", "sampling.height=40", "sampling.height = 40", "sampling.height=36"),
    # trackers
    one("unknown tracker", "tracking.trackers=[tensorbord]", "'tensorbord'", "tensorboard, wandb, trackio, swanlab"),
    one("project with a space", "tracking.project=my runs", "tracking.project = 'my runs'", "without spaces"),
    # resuming
    Bad(
        "resume without a run",
        ("output_dir=out", "resume=latest"),
        ("resume = 'latest'", "no checkpoint in out/checkpoints", "leave resume out"),
    ),
    Bad(
        "resume a run without checkpoints",
        ("output_dir=out", "resume=000020"),
        ("resume = '000020'", "no checkpoint in out/checkpoints"),
        (("out/config.yaml", "seed: 0\n"), ("out/checkpoints/.000020.writing/run.json", "{")),
    ),
    Bad(
        "resume from what is no checkpoint",
        ("output_dir=out", "resume=out"),
        ("resume = 'out'", "is no checkpoint of the run in 'out', which has 000020", "use resume=latest"),
        (("out/checkpoints/000020/manifest.json", "{}"),),
    ),
    Bad(
        "resume from a damaged checkpoint",
        ("output_dir=out", "resume=latest"),
        ("out/checkpoints/000020: manifest.json cannot be read", "no checkpoint is sound", "overwrite=true"),
        (("out/checkpoints/000020/manifest.json", "{}"),),
    ),
    Bad("resume and overwrite", ("resume=latest", "overwrite=true"), ("resume = 'latest'", "use overwrite=false")),
    one("changes without resume", "resume_with_changes=true", "resume_with_changes = true", "use resume=latest"),
    one("checkpoints below zero", "training.checkpoint.every=-1", "checkpoint.every = -1", ">= 0"),
    one("no checkpoint kept", "training.checkpoint.keep=0", "checkpoint.keep = 0", ">= 1"),
    # output
    Bad("output is a file", ("output_dir=out",), ("output_dir = 'out'", "not a folder"), (("out", "x"),)),
    Bad("output below a file", ("output_dir=out/run",), ("not a folder", "another output_dir"), (("out", "x"),)),
    Bad(
        "output holds a run",
        ("output_dir=out",),
        ("already holds a run", "output_dir=out-2", "overwrite=true"),
        (("out/config.yaml", "seed: 0\n"),),
    ),
    Bad(
        "output holds something else",
        ("output_dir=out", "overwrite=true"),
        ("not of a run", "never overwritten"),
        (("out/thesis.tex", "x"),),
    ),
]

NAMED = {bad.name: bad for bad in CASES}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("difalign.build.run.run_flow_grpo", lambda inputs: pytest.fail("bad input was trained on"))
    return tmp_path


def fill(folder: Path, bad: Bad) -> None:
    for name, content in bad.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def assert_clear(bad: Bad, stdout: str, stderr: str) -> None:
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr
    assert "pydantic" not in stderr
    missing = [text for text in bad.said if text not in stderr]
    assert not missing, stderr


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_bad_input(bad: Bad, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    fill(folder, bad)
    before = file_contents(folder)
    monkeypatch.setattr(sys, "argv", ["train_flow_grpo.py", *bad.arguments])
    with pytest.raises(SystemExit) as stop:
        train_flow_grpo.main()
    assert stop.value.code == 2
    assert_clear(bad, *capsys.readouterr())
    assert file_contents(folder) == before


@pytest.mark.parametrize(
    "bad",
    [
        NAMED[name]
        for name in ("misspelt key", "unknown plan", "malformed YAML", "empty prompt file", "unknown pipeline")
    ],
    ids=lambda bad: bad.name,
)
def test_both_commands_say_the_same(
    bad: Bad, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fill(folder, bad)
    said = []
    for main, command in ((train_flow_grpo.main, []), (app.main, ["train"]), (app.main, ["config", "validate"])):
        monkeypatch.setattr(sys, "argv", ["difalign", *command, *bad.arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        said.append(capsys.readouterr().err)
    assert len(set(said)) == 1


def run_script(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and processor seconds of ``train_flow_grpo.py`` in a process of its own."""
    code = (
        "import atexit, runpy, sys, time\n"
        "atexit.register(lambda: sys.stderr.write(f'\\n{time.process_time()} {\"torch\" in sys.modules}'))\n"
        f"sys.argv = ['train_flow_grpo.py', *{list(arguments)!r}]\n"
        f"runpy.run_path({str(ROOT / 'train_flow_grpo.py')!r}, run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *message, measured = result.stderr.splitlines()
    seconds, torch_loaded = measured.split()
    assert torch_loaded == "False"
    return result.returncode, result.stdout, "\n".join(message).strip(), float(seconds)


@pytest.mark.parametrize("bad", CASES[::14], ids=lambda bad: bad.name)
def test_process_fails_fast_without_torch(bad: Bad, folder: Path):
    fill(folder, bad)
    code, stdout, stderr, seconds = run_script(bad.arguments, folder, {})
    assert code == 2
    assert_clear(bad, stdout, stderr)
    assert seconds < SECONDS


def test_only_the_first_process_speaks(folder: Path):
    bad = NAMED["misspelt key"]
    for rank, expected in (("0", bad.said[0]), ("1", "")):
        code, _, stderr, _ = run_script(bad.arguments, folder, {"RANK": rank, "WORLD_SIZE": "2"})
        assert code == 2
        assert expected in stderr
        assert bool(stderr) is (rank == "0")


def test_more_processes_than_prompts(folder: Path):
    code, _, stderr, _ = run_script(("sampling.prompts_per_update=2",), folder, {"RANK": "0", "WORLD_SIZE": "4"})
    assert code == 2
    assert "sampling.prompts_per_update = 2" in stderr
    assert "sampling.prompts_per_update=4 or fewer processes" in stderr


def test_all_problems_are_named_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["train_flow_grpo.py", "sampling.steps=0", "seed=-1", "nam=x"])
    started = time.process_time()
    with pytest.raises(SystemExit):
        train_flow_grpo.main()
    assert time.process_time() - started < SECONDS
    error = capsys.readouterr().err
    assert "3 problems" in error
    assert all(key in error for key in ("sampling.steps = 0", "seed = -1", "nam: unknown key; did you mean name?"))


def test_unwritable_output(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (folder / "locked").mkdir()
    access = os.access
    # Permissions do not bind root, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    monkeypatch.setattr(sys, "argv", ["train_flow_grpo.py", "output_dir=locked/run"])
    with pytest.raises(SystemExit) as stop:
        train_flow_grpo.main()
    assert stop.value.code == 2
    assert "locked is not writable" in capsys.readouterr().err
