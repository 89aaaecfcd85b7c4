"""MAXL (Liu et al., 2019): auxiliary labels that a second network makes up, so that learning them helps.

The student has an auxiliary head of psi sub-classes for each class. A generator of the same architecture
gives every image a distribution over its own class's sub-classes. The student learns both; the generator
learns, by the gradient through the student's step, to make labels after which the primary loss is lower:

    theta+ = theta - rate * grad_theta [ focal(z_prim, y) + alpha * focal(z_aux, g) ]
    L_generator = focal(z_prim(theta+), y) + 0.2 * H,   H = sum_c m_c log m_c, m the batch's mean of g

H keeps all sub-classes in use. Departs from the authors' code: there the two networks learn in turns of an
epoch, here in the same step; there both by plain SGD, here the student by the recipe's, with a momentum and a
decay that theta+ leaves out. Gradients of gradients leave float16's range, scaled or not: fp32 or bf16 only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sskt.losses import focal
from sskt.methods.method import (
    Losses,
    Method,
    MethodConfig,
    Mixture,
    Parts,
    n_correct,
    require_range,
    stacked,
)
from sskt.students import Student

AUXILIARY = "maxl"  # the auxiliary head's name
_ENTROPY = 0.2  # weight of H, and the generator's own plain SGD: the authors'
_GENERATOR = {"lr": 1e-3, "weight_decay": 5e-4, "momentum": 0.0, "dampening": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxlConfig(MethodConfig):
    """Settings of MAXL; its losses are focal."""

    alpha: float = 0.1
    psi: int = 5  # sub-classes per class
    transfer_module: bool = False

    def __post_init__(self) -> None:
        """Raises RunError for a value that no training can have."""
        require_range("alpha", self.alpha, 0, math.inf)


class Maxl(Method):
    """A student with the auxiliary head `AUXILIARY`, and the generator of its labels."""

    Config = MaxlConfig
    several_labels = several_processes = mixes = fp16 = adam = False

    @classmethod
    def build(cls, config: MaxlConfig, parts: Parts) -> Maxl:
        """See `Method.build`."""
        n_made = parts.n_classes * config.psi
        heads = {AUXILIARY: n_made}
        student = parts.student(parts.backbone, heads, transfer_module=config.transfer_module)
        generator = Student(parts.another(), n_made, {}, False, init=parts.init, dropout=parts.dropout)
        return cls(student, generator, config, channels_last=parts.channels_last)

    @classmethod
    def inner_gradients(cls, config: MaxlConfig) -> str | None:  # noqa: ARG003
        """See `Method.inner_gradients`."""
        return "--method maxl"

    def __init__(
        self, student: Student, generator: Student, config: MaxlConfig, *, channels_last: bool
    ) -> None:
        """`generator` has n_classes * psi classes, as the student's auxiliary head."""
        super().__init__(student, config, channels_last=channels_last)
        self.generator = generator

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `Method.parameter_groups`; the generator has a rate of its own."""
        mine = [weight for weight in self.student.parameters() if weight.requires_grad]
        return [{"params": mine}, {"params": list(self.generator.parameters()), **_GENERATOR}]

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        source_logits: Mapping[str, Tensor],  # noqa: ARG002
        mixed: Mixture | None = None,  # noqa: ARG002
        mixed_sources: Mixture | None = None,  # noqa: ARG002
    ) -> Losses:
        """See `Method.forward`. `total`'s gradient on the student is that of its own two losses alone, and on
        the generator that of L_generator alone.
        """
        x = self._seen(pixels)
        made = self.made_labels(x, labels)
        primary_logits, auxiliary_logits = self.student(x)
        primary = focal(primary_logits.float(), labels)
        auxiliary = focal(auxiliary_logits[AUXILIARY].float(), made.detach())
        total = primary + self.config.alpha * auxiliary + self.generator_loss(x, labels, made)
        return Losses(
            total,
            primary.detach(),
            stacked([auxiliary], primary),
            n_correct(primary_logits, labels),
            stacked([], primary),
        )

    def made_labels(self, x: Tensor, labels: Tensor) -> Tensor:
        """A distribution over the sub-classes of each row's own class, 0 elsewhere: float (N, C * psi)."""
        scores = self.generator.predict(x).float().view(len(x), -1, self.config.psi)
        own = nn.functional.one_hot(labels, scores.shape[1]).unsqueeze(2)
        return (scores.softmax(dim=2) * own).flatten(1)

    def generator_loss(self, x: Tensor, labels: Tensor, made: Tensor) -> Tensor:
        """L_generator, with no gradient on the student's weights."""
        names = [name for name, weight in self.student.named_parameters() if weight.requires_grad]
        fixed = {name: weight.detach() for name, weight in self.student.named_parameters()}
        fixed |= {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        here = {name: fixed[name].clone().requires_grad_() for name in names}
        primary_logits, auxiliary_logits = functional_call(self.student, {**fixed, **here}, (x,))
        loss = focal(primary_logits.float(), labels)
        loss = loss + self.config.alpha * focal(auxiliary_logits[AUXILIARY].float(), made)
        step = torch.autograd.grad(loss, list(here.values()), create_graph=True)
        ahead = {name: w - self.rate * g for (name, w), g in zip(here.items(), step, strict=True)}
        fixed |= {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        primary_logits, _ = functional_call(self.student, {**fixed, **ahead}, (x,))
        mean = made.mean(dim=0)
        entropy = (mean * mean.clamp(min=1e-12).log()).sum()
        return focal(primary_logits.float(), labels) + _ENTROPY * entropy
