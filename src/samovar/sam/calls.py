"""Calls of `SAM` that cannot work, each answered by one line with the call that does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch.optim import LBFGS, Optimizer

from samovar.words import suggest

Init = TypeVar("Init", bound=Callable[..., None])


def answering(init: Init) -> Init:
    """Return the constructor with an answer to the signatures of other libraries.

    davda54/sam and pytorch_optimizer take parameters, the class of an optimizer and its settings;
    `SAM` takes an optimizer. The result raises a TypeError that shows the right call."""
    own = [
        name
        for name, each in inspect.signature(init).parameters.items()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    ]

    @wraps(init)
    def checked(self: object, *args: Any, **kwargs: Any) -> None:
        optimizers = [*args, *(value for name, value in kwargs.items() if name == "base_optimizer")]
        known = kwargs.keys() <= {"base_optimizer", *own}
        if not (known and len(optimizers) == 1 and _is_optimizer(optimizers[0])):
            raise TypeError(_answer(own, args, kwargs))
        init(self, *args, **kwargs)

    return cast(Init, checked)


def _is_optimizer(thing: object) -> bool:
    return not isinstance(thing, type) and hasattr(thing, "param_groups") and hasattr(thing, "step")


def _answer(own: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Say in one line how the call should read, with the caller's own names and numbers."""
    given = [*args, *(kwargs[name] for name in ("params", "base_optimizer") if name in kwargs)]
    # davda54/sam and pytorch_optimizer take rho in third place.
    numbers = [each for each in given if isinstance(each, float | int)]
    ours: dict[str, Any] = {"rho": numbers[0]} if numbers else {}
    ours |= {name: value for name, value in kwargs.items() if name in own}
    theirs = {
        name: value
        for name, value in kwargs.items()
        if name not in (*own, "params", "base_optimizer")
    }
    ours_text = _keywords(ours) or "rho=0.05"
    built = [each for each in given if _is_optimizer(each)]
    if built and not theirs:
        return (
            "SAM takes one optimizer, and its settings by keyword: "
            f"SAM(base_optimizer, {ours_text})"
        )

    makers = (type(each) if _is_optimizer(each) else each for each in given)
    maker: Any = next((each for each in makers if isinstance(each, partial | type)), None)
    while isinstance(maker, partial):
        theirs, maker = maker.keywords | theirs, maker.func
    accepted = theirs if maker is None else _accepted(maker, theirs)
    inside = _keywords(accepted) or ("" if maker else "lr=...")
    params = "groups" if any(map(_are_groups, given)) else "model.parameters()"
    call = f"SAM({_name(maker)}({', '.join(filter(None, (params, inside)))}), {ours_text})"
    if built:
        word = next(iter(theirs))
        hint = f"give it to the base optimizer: {call}"
        return f"SAM has no setting {word}; {hint if accepted else suggest(word, own)}"
    return f"SAM takes an optimizer that is built already, and its settings by keyword: {call}"


def _accepted(maker: Callable[..., object], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the class of an optimizer knows."""
    try:
        known = inspect.signature(maker).parameters
    except ValueError:  # a class written in C
        return settings
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values()):
        return settings
    return {name: value for name, value in settings.items() if name in known}


def _are_groups(thing: object) -> bool:
    return isinstance(thing, list | tuple) and any(isinstance(each, dict) for each in thing)


def _name(maker: Any) -> str:
    """Return the name by which a class is written in a program."""
    if maker is None:
        return "torch.optim.SGD"
    name: str = getattr(maker, "__name__", "Optimizer")
    return f"torch.optim.{name}" if getattr(torch.optim, name, None) is maker else name


def _keywords(settings: dict[str, Any]) -> str:
    """Return settings as the keywords of a call; what is long to write is left out as `...`."""
    texts = {
        name: repr(value) if isinstance(value, float | int | str | tuple) else "..."
        for name, value in settings.items()
    }
    return ", ".join(f"{name}={text if len(text) < 30 else '...'}" for name, text in texts.items())


def missing(owner: str, name: str) -> str:
    """Say that there is no such attribute, and what replaces the two steps of other libraries."""
    message = f"{owner!r} object has no attribute {name!r}"
    if name not in ("first_step", "second_step"):
        return message
    return (
        f"{message}; both passes are one call: sam.step(closure), or sam_backward(loss_fn, model)"
    )


def closure_caller(optimizer: Optimizer) -> str | None:
    """Return the name of an optimizer that cannot step without a closure; None if there is none.

    It is looked for in the optimizer and in those that it wraps, under their usual names."""
    found = (type(each).__name__ for each in _with_wrapped(optimizer) if _needs_closure(each))
    return next(found, None)


def _with_wrapped(optimizer: object) -> Iterator[object]:
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        seen.add(id(optimizer))
        yield optimizer
        inner = (getattr(optimizer, name, None) for name in ("optimizer", "base_optimizer"))
        optimizer = next(filter(_is_optimizer, inner), None)


def _needs_closure(optimizer: object) -> bool:
    # The second is how other libraries write a SAM, whose step calls the closure, too.
    if isinstance(optimizer, LBFGS) or hasattr(optimizer, "second_step"):
        return True
    step = inspect.unwrap(getattr(type(optimizer), "step", lambda: None))
    if not inspect.isfunction(step):
        return False
    needed = [
        each
        for each in list(inspect.signature(step).parameters.values())[1:]
        if each.default is inspect.Parameter.empty
        and each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    # pytorch_optimizer's name for the error of a step without a closure
    return bool(needed) or "NoClosureError" in step.__code__.co_names


def refuse_accumulate() -> None:
    """Refuse a step within accelerate's `accumulate()`.

    There a prepared optimizer drops the closure of every micro-batch but the last, and one that was
    not prepared steps in each of them.

    Raises:
        RuntimeError: the step is inside `accumulate()` over more than one micro-batch."""
    # Whoever accumulates with accelerate has imported it.
    package = sys.modules.get("accelerate.optimizer")
    if package is None:
        return
    state = package.GradientState()
    if state.sync_gradients and (state.num_steps == 1 or not _called_by(package)):
        return
    raise RuntimeError(
        "sam.step(closure) inside accelerate's accumulate() loses micro-batches; leave "
        "gradient_accumulation_steps at 1 and loop over them inside the closure, or call "
        "sam_backward in place of accelerator.backward"
    )


def _called_by(package: Any) -> bool:
    """Return whether accelerate's wrapper of the optimizer is among the callers."""
    wrapper, frame = package.AcceleratedOptimizer.step.__code__, sys._getframe()
    while frame.f_back is not None and frame.f_code is not wrapper:
        frame = frame.f_back
    return frame.f_code is wrapper
