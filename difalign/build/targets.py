"""``package.module:Class`` to the object it names."""

from __future__ import annotations

import importlib

from difalign.core.config_errors import nearest
from difalign.core.errors import ConfigError


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
