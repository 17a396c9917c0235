"""What a reward's weights are, whether they are there, and whether they are the right ones."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

from difalign.build.cards import Found, RewardCard
from difalign.build.reward_files import addresses, expected_files, obstacles, verify_files

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def found(folder: Path, **fields: object) -> Found[RewardCard]:
    card = RewardCard.model_validate({"name": "x", "summary": "x", "licence": "x", "target": "a:b", **fields})
    return Found(card, folder / "x.yaml")


def fill_cache(cache: Path, *, revision: str = "main", stated: str = SHA256) -> None:
    """A repository in the cache, as huggingface_hub lays it out: snapshots link to blobs named by their hash."""
    repository = cache / "models--me--mine"
    for part in ("refs", "blobs", "snapshots/abc"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / revision).write_text("abc")
    (repository / "blobs" / stated).write_bytes(CONTENT)
    (repository / "snapshots" / "abc" / "w.pt").symlink_to(f"../../blobs/{stated}")


def test_a_checkpoint_beside_the_card(tmp_path: Path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "w.pt").write_bytes(CONTENT)
    right = found(tmp_path, path="w", file="w.pt", sha256=SHA256)
    (file,) = verify_files(right)
    assert (file.problem, file.sha256, file.stated) == (None, SHA256, True)
    wrong = found(tmp_path, path="w", file="w.pt", sha256="0" * 64)
    (file,) = verify_files(wrong)
    assert file.problem is not None
    assert SHA256 in file.problem
    assert "the card states 0000" in file.problem
    assert not list(obstacles(wrong))  # reading gigabytes is verify's business


def test_a_checkpoint_of_the_hub_is_found_in_its_cache(tmp_path: Path):
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    card = found(tmp_path, hub_id="me/mine", file="w.pt")
    (missing,) = obstacles(card, environ)
    assert "hf download me/mine w.pt" in missing
    assert "models--me--mine" in missing
    fill_cache(tmp_path)
    assert not list(obstacles(card, environ))
    (file,) = verify_files(card, environ)
    assert (file.problem, file.stated) == (None, True)
    (absent,) = expected_files(found(tmp_path, hub_id="me/mine", file="w.pt", revision="v2"), environ)
    assert absent.path is None
    assert "--revision v2" in str(absent.problem)


def test_a_damaged_download_shows_by_its_name(tmp_path: Path):
    fill_cache(tmp_path, stated="0" * 64)
    (file,) = verify_files(found(tmp_path, hub_id="me/mine", file="w.pt"), {"HF_HUB_CACHE": str(tmp_path)})
    assert file.problem is not None
    assert "the hub states 0000" in file.problem


def test_a_folder_of_transformers_is_its_configuration_and_weights(tmp_path: Path):
    (tmp_path / "w").mkdir()
    card = found(tmp_path, path="w")
    assert [file.name for file in expected_files(card) if file.path is None] == ["config.json", "model.safetensors"]
    (tmp_path / "w" / "config.json").write_text("{}")
    (tmp_path / "w" / "model-00001-of-00001.safetensors").write_bytes(CONTENT)
    assert [file.name for file in verify_files(card)] == ["config.json", "model-00001-of-00001.safetensors"]
    assert not any(file.stated for file in verify_files(card))


def test_a_card_without_weights_has_no_files(tmp_path: Path):
    assert expected_files(found(tmp_path)) == ()


def test_a_server_is_asked_whether_it_listens(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/score"
        card = found(tmp_path, options={"urls": f"{url}, http://127.0.0.1:9", "name": "x"})
        assert addresses(card.card) == (url, "http://127.0.0.1:9")
        (closed,) = obstacles(card)
    assert "http://127.0.0.1:9:" in closed


def test_an_option_may_name_another_repository(tmp_path: Path):
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    needy = found(tmp_path, options={"encoder": "me/mine", "scale": "cosine"})
    (missing,) = obstacles(needy, environ)
    assert "me/mine, which options.encoder names" in missing
    fill_cache(tmp_path)
    assert not list(obstacles(needy, environ))
    served = found(tmp_path, options={"model": "you/yours", "url": "http://127.0.0.1:9"})
    assert all("you/yours" not in text for text in obstacles(served, environ))


@pytest.mark.parametrize(("module", "missing"), [("json", False), ("no_such.thing", True)])
def test_modules(tmp_path: Path, module: str, missing: bool):
    assert bool(list(obstacles(found(tmp_path, requires=[module])))) is missing
