"""Sharpness-aware minimization as a way to take a gradient.

SAM minimizes the worst loss nearby, max L(w + e) over |e| <= rho. To first order the worst e is
rho g / |g|, so one gradient costs two passes: the ascent (g, at w) and the descent (the gradient at
w + e, which the optimizer applies at w). The examples that share an ascent are a group of m: call
`sam_backward` once per group, and the gradients add up.

The algorithm itself is in engine.py; its passes over a module are in module_passes.py.

Source: Foret et al., arXiv:2010.01412; the adaptive form (ASAM): Kwon et al., arXiv:2102.11600."""

from __future__ import annotations

from contextlib import nullcontext

import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from samovar.sam.checks import check_own_ascent, check_settings, check_variant
from samovar.sam.engine import sam_gradient
from samovar.sam.memory import SamMemory
from samovar.sam.module_passes import InputAscent, LossFns, ModulePasses, as_list
from samovar.sam.variant import SamVariant


def sam_backward(
    loss_fn: LossFns,
    model: nn.Module,
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    shared_ascent: bool = False,
    scaler: GradScaler | None = None,
    input_ascent: InputAscent | None = None,
    ascent_loss_fn: LossFns | None = None,
    variant: SamVariant | None = None,
    memory: SamMemory | None = None,
    num_groups: int = 1,
    share: float | None = None,
    optimizer: Optimizer | None = None,
    replicas: dist.ProcessGroup | None = None,
) -> Tensor:
    """Add the SAM gradient of one group of examples to `.grad`: two passes forward and backward.

    All passes draw the same random numbers (dropout, stochastic depth). Buffers (BatchNorm
    statistics) come out as the ascent left them. The weights come back bit for bit, in the same
    storage, even if the descent raises. If the ascent gradient is zero or not finite, nothing is
    perturbed; rho = 0 is `plain_backward`. The call needs memory for one copy of the weights.

    Inputs may climb too (`input_ascent`). They move k times at the clean weights. The last move
    uses the gradients of the ascent's own backward pass, so the inputs cost k - 1 further passes;
    with rho = 0 they cost k passes, and the plain gradient is taken where they end.

    For several groups in a batch, call the function once per group, each loss weighted by
    m / batch. Under DDP every rank is a group of its own; run all calls but the last inside
    `model.no_sync()`. The ascent communicates nothing.

    A `variant` changes the algorithm as its settings say. A variant that uses both gradients
    combines them for each group and sends the result by one all-reduce after the passes. What it
    remembers is the mean over all groups and ranks, which costs one further all-reduce per vector.
    To climb in some of the steps only, pass rho = 0 in the others.

    Under `fully_shard` (FSDP2) the ranks that share the weights share every ascent: a group is what
    they all put into one call, each its mean loss. Norms take one all-reduce of a number, and the
    call needs memory for one copy of the rank's shard. Call it for every group; gradient sync stays
    on. `replicas` makes several such sets of ranks climb on their own.

    Args:
        loss_fn: maps the model to a scalar loss, or to an object, dict or tuple that holds it (see
            `restore.outputs.loss_of`); or several functions, one per micro-batch of the *same*
            group, whose losses are summed. Each is called twice, the first time with the module
            inside DDP.
        model: plain, compiled, or either in DDP. Reentrant activation checkpointing does not work.
        rho: radius of the perturbation, >= 0, in the norm of all weights together.
        adaptive: use ASAM: e = rho T^2 g / |T g| with T = |w| + eta for weights and 1 for the rest.
            As in its authors' code, weights are the parameters with "weight" in their names: those
            of norm layers count, biases do not.
        eta: ASAM's offset, > 0.
        shared_ascent: average the ascent gradient over the ranks by one all-reduce, so that m is
            the whole batch.
        scaler: scales the losses of all passes for fp16. Unscaling and the optimizer's step stay
            with the caller.
        input_ascent: the inputs that climb, and how.
        ascent_loss_fn: a loss for the ascent alone, such as that of a quarter of the examples; the
            returned loss and BatchNorm's statistics are then those of that loss. None uses
            `loss_fn`.
        variant: a relative of SAM; None is SAM.
        memory: what the variant keeps from step to step; pass the same object in every step of a
            run. None is fine for variants that keep nothing. For decoupled WSAM, call
            `memory.subtract_(optimizer, variant)` after the optimizer's step.
        num_groups: number of calls that make one step, for a variant with a memory.
        share: the group's share of the step's examples, of which F-SAM subtracts its average; give
            it for groups of unequal size. None is 1 / num_groups.
        optimizer: the optimizer whose momentum MSAM climbs along; ARWP takes its second moments if
            there are any, and keeps its own without.
        replicas: for a model that `fully_shard` has split over some of the ranks: those that hold
            the same shards in other replicas of it. The gradient is averaged over them.

    Returns:
        The summed loss [], detached and unscaled, at the unperturbed weights and before the inputs'
        last move; for MSAM, stale ascent and ARWP, which take no pass there, at the perturbed
        weights.

    Raises:
        ValueError: rho, eta, share or a number of steps is out of range; the model is compiled
            around DDP or sharded otherwise than by `fully_shard`, or the variant draws noise for
            shards; `loss_fn` is an empty sequence or returns no scalar loss; the variant's
            settings contradict each other, or something the variant needs is missing.
        TypeError: `loss_fn` is a function of something else, such as (input, target).

    Source: Foret et al., arXiv:2010.01412; ASAM: Kwon et al., arXiv:2102.11600; for each variant
        see its setting in `SamVariant`.
    """
    check_settings(rho, eta)
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"share={share} is out of range; give a share above 0, up to 1")
    variant = variant or SamVariant()
    check_variant(variant, adaptive, memory, optimizer)
    if ascent_loss_fn is not None:
        check_own_ascent(variant, "ascent_loss_fn")
    if input_ascent and (ascent_loss_fn is not None or variant.ascent_steps > 1):
        raise ValueError(
            "input_ascent needs one ascent on the whole group; leave out ascent_loss_fn and "
            "ascent_steps"
        )
    if input_ascent and variant.sharp_only:
        raise ValueError(
            "input_ascent with sharp_only=True: a step without a climb would train on the inputs "
            "before their last move; leave one of them out"
        )
    passes = ModulePasses(
        model=model,
        loss_fns=as_list(loss_fn),
        ascent_loss_fns=as_list(loss_fn if ascent_loss_fn is None else ascent_loss_fn),
        shared_ascent=shared_ascent,
        scaler=scaler,
        input_ascent=input_ascent,
        replicas=replicas,
    )
    climbers = passes.climbers(rho, eta if adaptive else None, variant.norms_only) if rho else {}
    with nullcontext(True) if memory is None else memory.turn(num_groups) as last:
        loss: Tensor = sam_gradient(
            passes,
            climbers,
            variant,
            memory,
            optimizer,
            num_groups=num_groups,
            share=share,
            last=last,
        )
    return loss
