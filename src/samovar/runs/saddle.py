"""Say where a negative eigenvalue shows that weights are no minimum; without torch.

lambda_max is the eigenvalue of largest magnitude, which is negative where the loss falls off more
steeply than it rises. It is then no sharpness, and not to be compared with a positive one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samovar.runs.records import Record

LARGEST = {
    "hessian/lambda_max": "hessian/largest_eigenvalue",
    "hessian/block_lambda_max": "hessian/block_largest_eigenvalue",
}
"""Name of the record of the largest eigenvalue, by that of the eigenvalue of largest magnitude."""
SMALLEST = {name: largest.replace("largest", "smallest") for name, largest in LARGEST.items()}
"""Name of the record of the smallest eigenvalue, by that of the one of largest magnitude."""


def saddle(record: Record, among: Iterable[Record] = ()) -> str:
    """Return a sentence if a lambda_max shows that the weights are no minimum, else "".

    Args:
        record: of lambda_max, of the whole network or a block.
        among: records, the newest last, that may hold the largest eigenvalue of the same place."""
    # some eigenvalue is within the residual of the value, also where the iteration stopped early
    if record.name not in LARGEST or not record.value + (record.residual or 0) < 0:
        return ""
    largest = largest_of(record, among)
    said = f"the eigenvalue of largest magnitude is negative ({record.value:.4g}), so"
    if largest is None:
        rest = "it is not to be compared with a positive one"
    else:
        state = "" if largest.converged else ", not converged"
        rest = f"compare the largest positive one ({largest.value:.4g}{state}) instead"
        if largest.value <= 0:
            rest = "no positive one was met"
    return f"{said} these weights are no minimum of the loss; {rest}"


def saddles(records: Sequence[Record]) -> list[str]:
    """Return the sentences on all lambda_max among records, each with its block."""
    found = ((record, saddle(record, records)) for record in records)
    return [f"{place_of(record)}: {text}" for record, text in found if text]


def largest_of(record: Record, among: Iterable[Record]) -> Record | None:
    """Return the newest record of the largest eigenvalue that one computation gave with another.

    Args:
        record: of lambda_max.
        among: records, the newest last."""
    name = LARGEST.get(record.name)
    same = [r for r in among if r.name == name and _origin(r) == _origin(record)]
    return same[-1] if same else None


def place_of(record: Record) -> str:
    """Return `lambda_max`, or `lambda_max of NAME` for that of a block."""
    return "lambda_max" + (f" of {record.where['block']}" if "block" in record.where else "")


def _origin(record: Record) -> tuple[object, ...]:
    return record.where, [record.settings.get(key) for key in ("request", "source", "images")]
