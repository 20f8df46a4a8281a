"""Import a function that makes a network, given as `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast


def import_function(name: str) -> Callable[..., object]:
    """Return the function that `module:function` names.

    Raises:
        ValueError: the name has another form, or the module or the function is not there."""
    # checked first, because importlib's own errors on such names say little
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise ValueError(
            f"--model.name {name} is not of the form module:function, such as my_package.nets:tiny"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module exists, something that it imports does not
        raise ValueError(
            f"--model.name {name}: no module {error.name!r} on the Python path; "
            "install it or set PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = [
            n for n, value in vars(module).items() if callable(value) and not n.startswith("_")
        ]
        raise ValueError(
            f"--model.name {name}: {module_name} has no function {function_name!r}; it has {found}"
        )
    return cast(Callable[..., object], function)
