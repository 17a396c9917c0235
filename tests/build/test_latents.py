"""The latent's shape from JSON files or the card, nothing loaded."""

from __future__ import annotations

import json
from pathlib import Path

from difalign.build.cards import Found, PipelineCard, load_pipeline_card
from difalign.build.latents import latent_shape


def found(folder: Path, **card: object) -> Found[PipelineCard]:
    base = {"name": "x", "summary": "x", "target": "a.b:C", "licence": "none"}
    source = {} if "hub_id" in card else {"path": "weights"}
    return Found(PipelineCard.model_validate({**base, **source, **card}), folder / "x.yaml")


def write(folder: Path, component: str, config: object) -> None:
    (folder / "weights" / component).mkdir(parents=True)
    (folder / "weights" / component / "config.json").write_text(json.dumps(config))


def test_shipped_model() -> None:
    shipped = load_pipeline_card("tiny-sd3")
    assert latent_shape(shipped) == (2, 18, 18)  # 36 pixels, an autoencoder that halves the sides
    assert latent_shape(shipped, height=24, width=48) == (2, 12, 24)


def test_a_unet_says_what_a_transformer_says(tmp_path: Path) -> None:
    write(tmp_path, "unet", {"in_channels": 4, "sample_size": 64})
    write(tmp_path, "vae", {"block_out_channels": [1, 2, 3, 4]})
    assert latent_shape(found(tmp_path)) == (4, 64, 64)
    assert latent_shape(found(tmp_path, height=256), width=128) == (4, 32, 16)


def test_the_card_speaks_for_what_is_not_downloaded(tmp_path: Path) -> None:
    assert latent_shape(load_pipeline_card("sd35-medium")) == (16, 128, 128)
    assert latent_shape(found(tmp_path, hub_id="nobody/nothing")) is None
    assert latent_shape(found(tmp_path, hub_id="nobody/nothing", latent_channels=4, latent_scale=8)) is None
    known = found(tmp_path, hub_id="nobody/nothing", latent_channels=4, latent_scale=8, height=64, width=32)
    assert latent_shape(known) == (4, 8, 4)


def test_files_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, "unet", ["no mapping"])
    write(tmp_path, "vae", {"block_out_channels": "three"})
    assert latent_shape(found(tmp_path, height=8, width=8)) is None
    (tmp_path / "weights" / "unet" / "config.json").write_text("{")
    assert latent_shape(found(tmp_path, height=8, width=8)) is None
