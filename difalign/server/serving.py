"""Listening: on this machine unless told otherwise, and elsewhere only with a token."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import torch

from difalign.core.errors import ConfigError
from difalign.core.protocols import RewardModel
from difalign.server.app import LOOPBACK, ServedReward, ServerLimits, create_app

_WARM_UP = (2, 3, 64, 64)  # pictures
_BACKLOG = 128  # connections that wait to be taken


def serve(
    served: ServedReward,
    *,
    host: str,
    port: int,
    token: str,
    limits: ServerLimits,
    announce: Callable[[str], object],
) -> None:
    """Serve until SIGINT or SIGTERM; ``announce`` is told the address as soon as it is taken.

    Raises:
        ConfigError: if others could listen in without a token, or the address is not to be had.
    """
    import uvicorn

    check_exposure(host, token)
    with listen(host, port) as listener:
        app = create_app(served, token=token, limits=limits, loopback_only=host in LOOPBACK)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,  # longer than clients keep an idle connection, so that they never meet a closed one
            timeout_graceful_shutdown=10,
        )
        announce(address(listener))
        uvicorn.Server(config).run(sockets=[listener])


def check_exposure(host: str, token: str) -> None:
    """Refuse to listen to other machines without a token.

    Raises:
        ConfigError: naming the variable that holds it.
    """
    if host not in LOOPBACK and not token:
        raise ConfigError(
            f"--host {host} listens to other machines, to anyone who reaches the port: set a token in "
            "DIFALIGN_REWARD_TOKEN (or the variable that --token-variable names), or leave --host at 127.0.0.1"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that connections wait while the rest starts; port 0 takes a free one.

    Raises:
        ConfigError: if the address is taken or none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port} ({error}); give another --port or --host") from None
    return listener


def address(listener: socket.socket) -> str:
    """What a client is given as ``url``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warm_up(model: RewardModel, *, needs: Sequence[str]) -> str:
    """Score two grey pictures, so that what loads late has loaded; what came of it, in a line.

    Raises:
        ImportError, OSError: what keeps the model from being loaded.
    """
    if needs:
        return f"not warmed up: {model.name} needs metadata ({', '.join(needs)})"
    media = torch.full(_WARM_UP, 0.5)
    try:
        with torch.no_grad():
            model.score(media, ["a photo of a cat"] * len(media), metadata=None)
    except ValueError as error:  # a reward may know only prompts of its own
        return f"not warmed up: {error}"
    return "warmed up"
