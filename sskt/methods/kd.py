"""Knowledge distillation (Hinton et al., 2015): the primary head itself learns what teachers of the same task
say.

L = (1 - alpha) * L_prim + alpha * mean over teachers of L_aux(z, z_s), with T^2 * KL as L_aux, "batchmean".
Of several labels a picture it is T^2 times the mean divergence of each class's two answers, sigmoids at T.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sskt.errors import RunError
from sskt.methods.method import Losses, Method, Pairs, Terms, n_correct, stacked
from sskt.students.student import Student


class Kd(Method):
    """A student without auxiliary heads, whose teachers know its own classes."""

    def __init__(
        self, student: Student, terms: Terms, *, channels_last: bool, teachers: Mapping[str, int]
    ) -> None:
        """`teachers`: their number of classes by name. Raises RunError if there is none, or one has other
        classes, or for a softmax over several labels a picture.
        """
        super().__init__(student, terms, channels_last=channels_last)
        n_classes = student.head.out_features
        for name, n in teachers.items():
            if n != n_classes:
                raise RunError(
                    f"--method kd: {name} knows {n} classes and the target has {n_classes}; "
                    f"name a teacher of the same task, such as run:FOLDER, a run of ours"
                )
        if not teachers:
            raise RunError("--method kd needs a teacher of the same task; add --source run:FOLDER")
        if terms.primary_loss == "bce" and terms.aux_loss != "kd":
            raise RunError(
                f"--method kd: --aux-loss {terms.aux_loss} is of one label a picture, this target has "
                f"several; use kd"
            )
        self.auxiliary_names = tuple(teachers)

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],
        mixed: Pairs | None = None,
        mixed_sources: Pairs | None = None,
    ) -> Losses:
        """See `Method.forward`."""
        logits, _ = self.student(self._seen(pixels))
        primary = self.terms.primary(logits, labels, mixed)
        distances = [
            self.terms.distance(logits, source_logits[name], mixed_sources) for name in self.auxiliary_names
        ]
        distance = torch.stack(distances).mean()
        total = (1 - self.terms.alpha) * primary + self.terms.alpha * distance
        return Losses(
            total,
            primary.detach(),
            stacked(distances, primary),
            n_correct(logits, labels),
            stacked([], primary),
        )
