"""Sharpness during training: measured on a fixed batch, beside the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from samovar.config import Config
from samovar.curvature import Hessian, top_eigenvalues
from samovar.data.loader import Batch, eval_batches
from samovar.data.splits import Source, in_proportion
from samovar.measure.sharpness import sam_sharpness
from samovar.objectives import make_objective
from samovar.runs.records import Record

SOURCE = "Cohen et al., arXiv:2103.00065; with SAM: Long and Bartlett, arXiv:2309.12488"


class Watch:
    """A measurement of lambda_max, gradient norm and SAM sharpness on one batch, in eval mode.

    Lanczos starts from the eigenvector of the last time, so it takes few products: one measurement
    costs some 30 gradients of the batch. Weights, random state and mode of the model are restored
    afterwards."""

    def __init__(self, config: Config, source: Source, device: torch.device) -> None:
        self.config = config
        split = source.train
        count = min(config.run.watch_images, len(split))
        split = split.take(in_proportion(split.labels, count, seed=0))
        self.batches = list(eval_batches(split, config.data, batch_size=count, device=device))
        self.objective = make_objective(config, len(source.classes))
        self.vector: Tensor | None = None

    def records(self, model: nn.Module, step: int, lr: float) -> Iterator[Record]:
        """Yield the numbers of one step.

        Args:
            lr: learning rate of the step, for the edge of stability."""
        # once per run: the functions in the loss stay the same
        op = Hessian(model, self._loss, self.batches, check=self.vector is None)
        # a coarse tolerance: the curve over training matters, not the third digit
        pairs = top_eigenvalues(op, tol=1e-2, max_steps=50, start=self.vector)
        # diverged weights give no vector to start from
        if pairs.vectors is not None and bool(torch.isfinite(pairs.vectors).all()):
            self.vector = pairs.vectors[:, 0]
        _, gradient = op.loss_and_gradient()
        norm = gradient.norm().item()
        settings = {"images": sum(map(len, self.batches)), "augmentation": "none", "mode": "eval"}
        where = {"step": step}
        yield Record(
            "watch/lambda_max",
            pairs.values[0].item(),
            where=where,
            settings=settings | {"tol": 1e-2},
            cost={"matvecs": pairs.num_products},
            converged=pairs.converged,
            residual=pairs.residuals[0].item(),
        )
        yield Record("watch/grad_norm", norm, where=where, settings=settings)
        # plain runs are measured at SAM's usual radius
        rho = self.config.sam.rho or 0.05
        found = sam_sharpness(model, self._loss, self.batches, rho=rho)
        yield Record(
            "watch/sam_sharpness",
            found.value,
            "nats",
            where=where,
            settings=settings | {"rho": rho},
        )
        yield Record(
            "watch/stability_threshold",
            threshold(lr, self.config.sam.rho, norm),
            where=where,
            settings={"lr": lr, "rho": self.config.sam.rho, "assumes": "gradient descent"},
            source=SOURCE,
        )

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective(model, batch).value


def threshold(lr: float, rho: float, grad_norm: float) -> float:
    """Return the lambda above which gradient descent on a quadratic diverges.

    It is 2 / lr for plain training. SAM's is smaller and solves lr * lambda * (1 + rho * lambda /
    |g|) = 2. Adam-like optimizers depend on the preconditioned Hessian instead, so there the number
    is only a landmark."""
    # the positive root of the quadratic equation in lambda
    if lr == 0:
        return math.inf
    if rho == 0 or grad_norm == 0:
        return 2 / lr
    return grad_norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * grad_norm)) - 1)
