"""What models and loss functions of others return: the logits, or the scalar loss, inside.

A model may return a tensor, or an object of Hugging Face's transformers, a dict or a tuple that
holds the logits; a loss function may do the same with its loss. Only what leaves no choice is
taken; anything else is refused in a line that says what to return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

OF_MODEL = "lambda model: criterion(model(images), labels)"
OF_MODEL_AND_BATCH = "lambda model, batch: criterion(model(batch[0]), batch[1])"
OF_OUTPUTS_AND_BATCH = "lambda outputs, batch: criterion(outputs, batch[1])"


def logits_of(output: object) -> Tensor:
    """Return the logits in what a model returned.

    A tensor is returned as it is. Otherwise the logits are the tensor under the name `logits`, an
    attribute or a key, as of image classifiers of Hugging Face; or the one tensor [B, K] of a
    tuple or list.

    Raises:
        TypeError: none of these, or a tuple with several tensors [B, K]."""
    if isinstance(output, Tensor):
        return output
    found = _named(output, "logits")
    if found is None and isinstance(output, tuple | list):
        rows = [part for part in output if isinstance(part, Tensor) and part.ndim == 2]
        found = rows[0] if len(rows) == 1 else None
    if isinstance(found, Tensor):
        return found
    raise TypeError(
        f"the model returns {_described(output)}; wrap it to return logits [n, K], "
        "or an object or dict that has them under the name logits"
    )


def loss_from(loss_fn: Callable[..., object], *args: Any, example: str) -> Tensor:
    """Call a loss function as `called` does and return the scalar loss in what it returned.

    Raises:
        TypeError: as `called`.
        ValueError: as `loss_of`."""
    return loss_of(called(loss_fn, *args, example=example))


def called(loss_fn: Callable[..., object], *args: Any, example: str) -> object:
    """Call a loss function and return what it returned.

    Args:
        loss_fn: the function that the user gave.
        args: what it is called with, the model or the outputs first.
        example: a right function as source text, one of those above; for the messages.

    Raises:
        TypeError: the function takes something else, such as the outputs and the labels."""
    if not callable(loss_fn):
        raise TypeError(
            f"the loss function is {_described(loss_fn)}; give a function, such as {example}"
        )
    if isinstance(args[0], nn.Module) and isinstance(loss_fn, _Loss):
        raise _wrong_arguments(loss_fn, example)
    try:
        return loss_fn(*args)
    except (TypeError, AttributeError) as error:
        if _is_for_others(loss_fn, args, error):
            raise _wrong_arguments(loss_fn, example) from error
        raise


def loss_of(value: object) -> Tensor:
    """Return the scalar loss [] in what a loss function returned.

    A tensor with a single number is the loss. Otherwise it is the one under the name `loss`, an
    attribute or a key; or the first of a tuple or list that has no other scalar tensor.

    Raises:
        ValueError: none of these."""
    found = value if isinstance(value, Tensor) else _named(value, "loss")
    if found is None and isinstance(value, tuple | list):
        scalars = [part for part in value if isinstance(part, Tensor) and not part.ndim]
        found = value[0] if len(scalars) == 1 and value[0] is scalars[0] else None
    if isinstance(found, Tensor) and found.numel() == 1:
        return found.reshape(()) if found.ndim else found
    if isinstance(found, Tensor):
        value = found
    raise ValueError(f"the loss is {_described(value)}, not a scalar tensor; {_advice(value)}")


def _named(output: object, name: str) -> object:
    """Return what an output holds under a name, as a key or an attribute; None if nothing."""
    if isinstance(output, Mapping):
        return output.get(name)
    return getattr(output, name, None)


def _described(value: object) -> str:
    """Return a few words on a value that is not what was asked for."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{kind} with the keys {', '.join(map(str, value)) or '(none)'}"
    if isinstance(value, tuple | list):
        parts = (_described(part) for part in value[:3])
        return f"{kind} of {len(value)} ({', '.join(parts)}{', ...' if len(value) > 3 else ''})"
    return "None" if value is None else kind


def _advice(value: object) -> str:
    """Return what a loss function should return in place of a value."""
    if value is None:
        return "return the loss from the function"
    if isinstance(value, Tensor):
        return "return its mean over the batch, as loss.mean(), a tensor of shape []"
    if isinstance(value, int | float):
        return f"return the tensor itself; .item() makes it a number of type {type(value).__name__}"
    if isinstance(value, Mapping | tuple | list):
        return "return the one scalar loss to use, or the sum of several"
    return "return the mean loss over the batch, a tensor of shape []"


def _is_for_others(loss_fn: Callable[..., object], args: tuple[Any, ...], error: Exception) -> bool:
    """Return whether an error shows that a loss function is meant for other arguments."""
    if isinstance(loss_fn, nn.Module) or not _binds(loss_fn, args):
        return True
    if _parameters(loss_fn)[:2] == ["input", "target"]:  # torch.nn.functional
        return True
    # where the first is the outputs, they are right, and the batch is in the labels' place
    wrong = args[0] if isinstance(args[0], nn.Module) else args[-1]
    if isinstance(error, AttributeError):  # as of `logits.log_softmax(1)`
        return error.obj is wrong and hasattr(Tensor, error.name or "")
    kind, text = type(wrong).__name__, str(error)
    # of torch's functions, and of operators such as `-`
    return f"must be Tensor, not {kind}" in text or f"operand type(s) for -: '{kind}'" in text


def _binds(loss_fn: Callable[..., object], args: tuple[Any, ...]) -> bool:
    try:
        inspect.signature(loss_fn).bind(*args)
    except TypeError:
        return False
    except ValueError:  # a function in C has no signature
        pass
    return True


def _parameters(function: Callable[..., object]) -> list[str]:
    """Return the names of the parameters that a function must be given, if they are known."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        known = inspect.signature(called).parameters.values()
    except ValueError:
        return []
    return [p.name for p in known if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _wrong_arguments(loss_fn: Callable[..., object], example: str) -> TypeError:
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    takes = f"takes ({', '.join(_parameters(loss_fn))})"
    given = example.removeprefix("lambda ").partition(":")[0]
    return TypeError(
        f"the loss function {name} {takes} and is called with ({given}); give a function of "
        f"({given}), such as {example}"
    )
