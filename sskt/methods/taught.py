"""SSKT: L = L_prim + alpha * sum over sources of L_aux (SSKT eq. 1, 5, 7). Without sources, plain training.

The gradients of the losses on the weights that they share can be compared on the way, and auxiliary losses
weighted by it (Du et al., 2018, "Adapting auxiliary losses using gradient similarity"), which the paper names
as open work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sskt.errors import RunError
from sskt.methods.method import Losses, Method, Pairs, Terms, n_correct, stacked
from sskt.student import Student

GRADIENT_COSINE = ("off", "record", "weigh")


class Taught(Method):
    """A student with one auxiliary head per source.

    `gradient_cosine`: "record" the cosine of each auxiliary gradient with the primary one on the backbone's
    weights, or also "weigh" each auxiliary loss by it, where it is above 0. Either costs a backward pass a
    source and one more.
    """

    def __init__(
        self, student: Student, terms: Terms, *, channels_last: bool, gradient_cosine: str = "off"
    ) -> None:
        """Raises RunError for gradients of a backbone that is frozen as a whole."""
        super().__init__(student, terms, channels_last=channels_last)
        moving = any(weight.requires_grad for weight in student.backbone.parameters())
        if gradient_cosine != "off" and not moving:
            raise RunError(
                f"--gradient-cosine {gradient_cosine} compares gradients on the backbone's weights, and all "
                f"of them are frozen; leave it out, or freeze less than --freeze-until head"
            )
        self._gradient_cosine = gradient_cosine
        if gradient_cosine != "off":
            self.recorded_names = tuple(f"gradient_cosine/{name}" for name in student.source_names)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Pairs | None = None,
        mixed_sources: Pairs | None = None,
    ) -> Losses:
        """See `Method.forward`."""
        primary_logits, auxiliary_logits = self.student(self._seen(pixels))
        primary = self.terms.primary(primary_logits, labels, mixed)
        auxiliary = [
            self.terms.auxiliary(logits, source_logits[name], mixed_sources)
            for name, logits in auxiliary_logits.items()
        ]
        cosines = self._cosines(primary, auxiliary)
        weighed = auxiliary
        if self._gradient_cosine == "weigh":
            weighed = [c.clamp(min=0) * loss for c, loss in zip(cosines, auxiliary, strict=True)]
        # without sources nothing is added: torch.compile takes `primary + 0` for its detached twin
        total = primary + self.terms.alpha * torch.stack(weighed).sum() if weighed else primary
        return Losses(
            total,
            primary.detach(),
            stacked(auxiliary, primary),
            n_correct(primary_logits, labels),
            stacked(cosines, primary),
        )

    def _cosines(self, primary: Tensor, auxiliary: list[Tensor]) -> list[Tensor]:
        """Of each auxiliary gradient with the primary one; none where nobody asks for them."""
        if self._gradient_cosine == "off" or not torch.is_grad_enabled():
            return []
        shared = [weight for weight in self.student.backbone.parameters() if weight.requires_grad]
        own = _gradient(primary, shared)
        return [torch.nn.functional.cosine_similarity(own, _gradient(a, shared), dim=0) for a in auxiliary]


def _gradient(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """One vector, zero where the loss does not depend on a weight."""
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    return torch.cat([part.flatten().float() for part in parts])
