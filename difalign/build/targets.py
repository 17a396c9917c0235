"""``package.module:Class`` to the object it names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable

from difalign.core.config_errors import did_you_mean, nearest
from difalign.core.errors import ConfigError


def check_target(target: str) -> None:
    """Refuse a target whose package is not there, without importing anything of it.

    Raises:
        ConfigError: if Python finds no package of that name.
    """
    package = target.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"target {target!r}: there is no module {package!r}; install it or put its folder on PYTHONPATH"
        )


def check_options(target: str, call: Callable[..., object], options: Iterable[str]) -> None:
    """Refuse options that what a target names does not take.

    Raises:
        ConfigError: naming the nearest that it does.
    """
    parameters = inspect.signature(call).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for name in options:
        if name not in known:
            raise ConfigError(f"target {target!r}: options.{name}: unknown option; {did_you_mean(name, known)}")


def resolve_target(target: str) -> object:
    """Import the module and return its attribute.

    Raises:
        ConfigError: if the text has no colon, the module does not exist, or it has no such attribute. An error
            inside the module, or the lack of a library that it needs, is left as it is.
    """
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise ConfigError(f"target {target!r}: must be written package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # a dependency of the module is missing, not the module
        raise ConfigError(
            f"target {target!r}: there is no module {error.name!r}; install it or put its folder on PYTHONPATH"
        ) from None
    if not hasattr(module, attribute):
        close = nearest(attribute, [name for name in vars(module) if not name.startswith("_")])
        hint = f"; did you mean {close!r}?" if close is not None else ""
        raise ConfigError(f"target {target!r}: {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)
