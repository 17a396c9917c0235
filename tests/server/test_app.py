"""What the server lets in, what it refuses, and that its answers give nothing away."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch

from difalign.reward_models.score_messages import ScoreReply, ScoreRequest
from difalign.reward_models.tensor_message import TensorMessage
from difalign.server.app import ServerLimits
from tests.server.scorers import BODY, HASH, Watched, asking, request


class Boom:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_scores_come_back_with_components_and_who_gave_them():
    asked = request("a", "four", request_id="job-7")
    with asking() as client:
        response = client.post("/v1/score", content=asked.to_bytes(), headers=BODY)
    assert response.status_code == 200
    reply = ScoreReply.from_bytes(response.content, rows=2)
    mean = (asked.media.float() / 255).flatten(1).mean(dim=1)
    assert torch.equal(reply.output.components["mean"], mean)
    assert torch.equal(reply.output.scores, mean + torch.tensor([1.0, 4.0]))
    assert (reply.request_id, reply.card_hash, reply.output.errors) == ("job-7", HASH, {})


def test_clips_are_scored():
    asked = ScoreRequest(torch.zeros(2, 5, 3, 4, 4, dtype=torch.uint8), ("a", "bb"))
    with asking() as client:
        response = client.post("/v1/score", content=asked.to_bytes(), headers=BODY)
    assert ScoreReply.from_bytes(response.content, rows=2).output.scores.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_encoded_media_are_read_where_that_is_allowed(encoding: str, caplog: pytest.LogCaptureFixture):
    asked = request("a", "four", size=16, encoding=encoding)
    with asking(limits=ServerLimits(encodings=("raw", encoding))) as client:
        response = client.post("/v1/score", content=asked.to_bytes(), headers=BODY)
    means = ScoreReply.from_bytes(response.content, rows=2).output.components["mean"]
    exact = (asked.media.float() / 255).flatten(1).mean(dim=1)
    assert torch.equal(means, exact) if encoding == "png" else 0 < (means - exact).abs().max() < 0.05
    assert f"as {encoding}" in caplog.text
    with asking() as client:
        refused = client.post("/v1/score", content=asked.to_bytes(), headers=BODY)
    assert refused.status_code == 400
    assert "accepted here: raw" in refused.json()["error"]


def test_a_row_that_fails_fails_alone_and_without_a_trace():
    asked = request("one", "fail", "nan", "three")
    with asking() as client:
        response = client.post("/v1/score", content=asked.to_bytes(), headers=BODY)
    output = ScoreReply.from_bytes(response.content, rows=4).output
    assert output.valid is not None
    assert output.valid.tolist() == [True, False, False, True]
    assert output.scores.isnan().tolist() == [False, True, True, False]
    assert "KeyError" in output.errors[1]
    assert "must be a finite number" in output.errors[2]
    assert b"Traceback" not in response.content
    assert b"NaN" not in response.content[: int.from_bytes(response.content[:8], "little")]


def test_pickles_are_refused_unread(tmp_path: Path):
    trace = tmp_path / "read"
    body = pickle.dumps(Boom(trace))
    with asking() as client:
        for kind in ("application/octet-stream", "application/x-pickle", "application/python-pickle"):
            response = client.post("/v1/score", content=body, headers={"Content-Type": kind})
            assert response.status_code in (400, 415)
            assert "safetensors" in response.json()["error"]
    assert not trace.exists()


def test_too_large_a_body_is_refused():
    with asking(limits=ServerLimits(largest_body=10_000)) as client:
        announced = client.post("/v1/score", content=bytes(10_001), headers=BODY)
        streamed = client.post("/v1/score", content=iter([bytes(1000)] * 11), headers=BODY)
    assert announced.status_code == streamed.status_code == 413
    assert "longer than 10000 bytes" in announced.json()["error"]


def test_a_small_body_that_stands_for_a_large_one_is_refused():
    body = gzip.compress(bytes(1 << 24))
    with asking() as client:
        response = client.post("/v1/score", content=body, headers={**BODY, "Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert "Content-Encoding" in response.json()["error"]


def test_media_that_decode_to_more_than_is_allowed_are_refused():
    asked = request("a", size=64, encoding="png")
    message = TensorMessage.from_bytes(asked.to_bytes())
    huge = TensorMessage(message.tensors, {**message.header, "shape": [1, 3, 60_000, 60_000]})
    other = TensorMessage(message.tensors, {**message.header, "shape": [1, 3, 64, 65]})
    with asking(limits=ServerLimits(encodings=("png",))) as client:
        for body, why in ((huge, "take more than"), (other, "it is 64 x 64 and not 65 x 64")):
            response = client.post("/v1/score", content=body.to_bytes(), headers=BODY)
            assert response.status_code == 400
            assert why in response.json()["error"]


def test_only_who_has_the_token_is_answered():
    with asking(token="secret") as client:
        for path in ("/v1/info", "/v1/metrics"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer other"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
        body = request("a").to_bytes()
        assert client.post("/v1/score", content=body, headers=BODY).status_code == 401
        allowed = {**BODY, "Authorization": "Bearer secret"}
        assert client.post("/v1/score", content=body, headers=allowed).status_code == 200
        assert client.get("/v1/health").status_code == 200
        assert (
            client.get("/v1/info", headers={"Authorization": "Bearer s\xe9cret".encode("latin-1")}).status_code == 401
        )


def test_a_name_that_is_not_this_machine_is_not_answered():
    with asking(base_url="http://evil.example") as client:
        assert client.get("/v1/health").status_code == 421
        assert client.post("/v1/score", content=request("a").to_bytes(), headers=BODY).status_code == 421
    with asking(base_url="http://[::1]:80") as client:
        assert client.get("/v1/health").status_code == 200


def test_metadata_arrive_and_those_that_are_needed_are_asked_for():
    model = Watched()
    rows = ({"target": "x", "count": 2}, {"target": "y", "deep": [1, {"a": None}]})
    with asking(model, needs=["target"]) as client:
        good = client.post("/v1/score", content=request("a", "b", metadata=rows).to_bytes(), headers=BODY)
        bad = client.post("/v1/score", content=request("a", metadata=({"count": 1},)).to_bytes(), headers=BODY)
        none = client.post("/v1/score", content=request("a").to_bytes(), headers=BODY)
    assert good.status_code == 200
    assert model.metadata == [list(rows)]
    assert bad.status_code == none.status_code == 400
    assert "'target'" in bad.json()["error"]


def test_what_is_told_about_the_reward_and_its_work():
    with asking() as client:
        client.post("/v1/score", content=request("a", "nan").to_bytes(), headers=BODY)
        client.post("/v1/score", content=b"x", headers=BODY)
        about, counts = client.get("/v1/info").json(), client.get("/v1/metrics").json()
    assert (about["name"], about["card_hash"], about["differentiable"]) == ("watched", HASH, False)
    assert {"modality", "needs", "schema", "difalign", "encodings", "max_batch"} <= about.keys()
    assert (counts["pictures"], counts["failed_pictures"], counts["batches"]) == (2, 1, 1)
    assert counts["answers"] == {"200": 1, "400": 1}


def test_unknown_addresses_are_answered_in_json():
    with asking() as client:
        for response in (client.get("/"), client.get("/v1/score"), client.post("/v1/info"), client.get("/docs")):
            assert response.status_code in (404, 405)
            assert json.loads(response.content).keys() == {"error"}
