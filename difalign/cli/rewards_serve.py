"""``difalign rewards serve``: a reward for other processes and machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, cast

import typer

from difalign.cli.settings import clear_failure

if TYPE_CHECKING:
    from difalign.reward_models.media_encoding import Encoding

TOKEN_VARIABLE = "DIFALIGN_REWARD_TOKEN"

HostOption = Annotated[str, typer.Option(help="0.0.0.0 listens to other machines as well, and needs a token.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
OptionOption = Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE of the card; may be repeated.")]
AcceptOption = Annotated[str, typer.Option(help="Encodings of media besides raw: png, jpeg, or png,jpeg.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures that the model is given at once.")]
WindowOption = Annotated[float, typer.Option(min=0.0, help="Milliseconds that an idle model waits for other clients.")]
WaitingOption = Annotated[int, typer.Option(min=1, help="Pictures that may wait; more are sent away with 503.")]
BodyOption = Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")]
TokenOption = Annotated[str, typer.Option(help="Environment variable that holds the token.")]


def serve(
    name: Annotated[str, typer.Argument(help="A card's name, or its file.")],
    *,
    host: HostOption = "127.0.0.1",
    port: PortOption = 18085,
    device: Annotated[str, typer.Option(help="Where it computes: cpu, cuda, cuda:1.")] = "cpu",
    option: OptionOption = None,
    accept: AcceptOption = "",
    max_batch: BatchOption = 64,
    window_ms: WindowOption = 5.0,
    max_waiting: WaitingOption = 1024,
    max_body_mib: BodyOption = 264,
    token_variable: TokenOption = TOKEN_VARIABLE,
) -> None:
    """Serve a reward until interrupted; clients name it by the card `remote` and its address."""
    with clear_failure():
        _serve(
            name,
            host=host,
            port=port,
            device=device,
            settings=option or [],
            accept=accept,
            max_batch=max_batch,
            window_ms=window_ms,
            max_waiting=max_waiting,
            max_body_mib=max_body_mib,
            token=os.environ.get(token_variable, ""),
        )


def _serve(
    name: str,
    *,
    host: str,
    port: int,
    device: str,
    settings: list[str],
    accept: str,
    max_batch: int,
    window_ms: float,
    max_waiting: int,
    max_body_mib: int,
    token: str,
) -> None:
    _require("fastapi", "uvicorn")
    import difalign
    from difalign.build.cards import load_reward_card
    from difalign.server.app import ServerLimits
    from difalign.server.batching import BatchLimits
    from difalign.server.loading import load_served
    from difalign.server.serving import check_exposure, serve, warm_up

    check_exposure(host, token)  # before weights are loaded
    limits = ServerLimits(
        largest_body=max_body_mib << 20,
        encodings=("raw", *_encodings(accept)),
        batching=BatchLimits(window=window_ms / 1000, max_batch=max_batch, max_waiting=max_waiting),
    )
    served = load_served(load_reward_card(name), settings, device=device, version=difalign.__version__)
    typer.echo(f"{served.model.name}: {warm_up(served.model, needs=served.needs)}", err=True)
    typer.echo(f"{served.model.name}: card hash {served.card_hash}", err=True)
    serve(
        served,
        host=host,
        port=port,
        token=token,
        limits=limits,
        announce=lambda url: typer.echo(f"serving {url}"),
    )


def _require(*modules: str) -> None:
    from importlib.util import find_spec

    from difalign.core.errors import ConfigError

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"a reward server needs {' and '.join(missing)}: pip install 'difalign[rewards]'")


def _encodings(text: str) -> tuple[Encoding, ...]:
    from difalign.core.errors import ConfigError
    from difalign.reward_models.media_encoding import ENCODINGS

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ENCODINGS:
            raise ConfigError(f"--accept {name}: known encodings: {', '.join(ENCODINGS)}")
    return cast("tuple[Encoding, ...]", tuple(name for name in names if name != "raw"))
