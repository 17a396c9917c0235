"""Anything may arrive: the answer is a status and a line, never a crash, a trace, or memory without end."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from difalign.reward_models.score_messages import ScoreReply
from difalign.server.app import ServerLimits
from difalign.server.batching import BatchLimits
from tests.server.scorers import BODY, asking, request

LIMITS = ServerLimits(largest_body=200_000, encodings=("raw", "png", "jpeg"), batching=BatchLimits(window=0.0))
TRACES = (b"Traceback", b'File "', b"site-packages", b".py")
STATUSES = {200, 400, 408, 413, 415, 421, 503}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
dtypes = st.sampled_from([torch.uint8, torch.float32, torch.bool, torch.int64, torch.bfloat16])
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=6)
headers = st.fixed_dictionaries(
    {"schema": st.just(1) | json_values, "prompts": st.lists(st.text(max_size=5), max_size=3) | json_values},
    optional={
        "metadata": json_values,
        "request_id": json_values,
        "sigma": json_values,
        "encoding": st.sampled_from(["raw", "png", "jpeg"]) | json_values,
        "shape": st.lists(st.integers(-1, 1 << 40), max_size=5) | json_values,
    },
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Safetensors whose contents are nearly right, or anything."""
    names = draw(st.lists(st.sampled_from(["media", "sizes", "scores", "x"]), unique=True, max_size=3))
    tensors = {name: torch.zeros(draw(shapes), dtype=draw(dtypes)) for name in names}
    return save(tensors, metadata={"difalign": json.dumps(draw(headers))})


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good request with bytes changed, cut off or added."""
    encoding = draw(st.sampled_from(["raw", "png", "jpeg"]))
    body = bytearray(request("a", "b", size=8, encoding=encoding).to_bytes())
    for _ in range(draw(st.integers(1, 6))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))]) + draw(st.binary(max_size=20))


@st.composite
def headers_only(draw: st.DrawFn) -> bytes:
    """The format by hand: tables that no writer makes."""
    table = draw(
        st.dictionaries(
            st.sampled_from(["media", "__metadata__", "a"]),
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["U8", "F4", "F32", "BOOL", "E8"]),
                    "shape": st.lists(st.integers(-1, 1 << 64)),
                },
                optional={"data_offsets": st.lists(st.integers(0, 1 << 64), max_size=3)},
            )
            | json_values,
            max_size=3,
        )
    )
    text = json.dumps(table).encode()
    length = draw(st.just(len(text)) | st.integers(0, (1 << 64) - 1))
    return length.to_bytes(8, "little") + text + draw(st.binary(max_size=40))


@st.composite
def sound(draw: st.DrawFn) -> bytes:
    """A good request; the scorer may fail on its prompts."""
    prompts = draw(st.lists(st.sampled_from(["fail", "nan"]) | st.text(max_size=5), min_size=1, max_size=3))
    return request(*prompts, size=draw(st.integers(1, 9)), encoding=draw(st.sampled_from(["raw", "png"]))).to_bytes()


bodies = st.binary(max_size=300) | sound() | messages() | damaged() | headers_only()


def check(response: Any) -> None:
    assert response.status_code in STATUSES, response.content[:300]
    if response.status_code == 200:
        body = response.content
        assert b"NaN" not in body[8 : 8 + int.from_bytes(body[:8], "little")]
        rows = len(ScoreReply.from_bytes(body, rows=_rows(body)).output.scores)
        assert rows >= 1
        return
    assert not any(trace in response.content for trace in TRACES), response.content[:300]
    assert isinstance(response.json()["error"], str)
    assert len(response.content) < 2000


def _rows(body: bytes) -> int:
    table = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return table["scores"]["shape"][0]


def test_any_body_is_answered():
    seen: set[int] = set()
    with asking(limits=LIMITS) as client:

        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(bodies)
        def post(body: bytes) -> None:
            response = client.post("/v1/score", content=body, headers=BODY)
            check(response)
            seen.add(response.status_code)

        post()
        assert client.post("/v1/score", content=request("a").to_bytes(), headers=BODY).status_code == 200
    assert seen == {200, 400}, "the examples should reach the scorer as well as the refusals"


def test_any_headers_and_addresses_are_answered():
    names = st.sampled_from(["Content-Type", "Content-Encoding", "Authorization", "Host", "Accept", "Expect", "X-Any"])
    values = st.sampled_from(["application/octet-stream", "gzip", "", "identity"]) | st.text(
        st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30
    )
    paths = st.sampled_from(["/v1/score", "/v1/info", "/v1/health", "/v1/metrics", "/", "/v1/%00", "/v1/score/../x"])
    with asking(limits=LIMITS) as client:

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(paths, st.sampled_from(["GET", "POST", "PUT", "HEAD"]), st.dictionaries(names, values, max_size=4))
        def ask(path: str, method: str, given: dict[str, str]) -> None:
            response = client.request(
                method, path, headers={name: value.encode("latin-1") for name, value in given.items()}
            )
            assert response.status_code in STATUSES | {404, 405}
            assert not any(trace in response.content for trace in TRACES)

        ask()


def test_bodies_that_grow_when_they_are_read_take_bounded_memory():
    """JSON becomes some twenty times as large in memory: what is read of it is bounded apart from the body."""
    nested = b"[" * 150_000
    many = json.dumps({f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(3000)}).encode()
    with asking(limits=LIMITS) as client:
        client.post("/v1/score", content=request("a").to_bytes(), headers=BODY)
        tracemalloc.start()
        try:
            for text in (nested, many):
                body = len(text).to_bytes(8, "little") + text
                check(client.post("/v1/score", content=body, headers=BODY))
            assert tracemalloc.get_traced_memory()[1] < 40 * LIMITS.largest_body
        finally:
            tracemalloc.stop()
