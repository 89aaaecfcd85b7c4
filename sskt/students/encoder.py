"""A backbone that learns a pretext task: a student whose head answers that task, and is dropped after it."""

from __future__ import annotations

from torch import Tensor, nn

from sskt.students.backbone import Backbone, Features
from sskt.students.student import Student

PRETEXTS = ("sorting", "egomotion", "tracking", "prediction")
_BACKBONE = "backbone."


class Encoder(Student):
    """A backbone and the head of a task, which is called with the backbone's Features. Only the backbone is
    exported.
    """

    def __init__(self, backbone: Backbone, task_head: nn.Module) -> None:
        nn.Module.__init__(self)  # it has none of a student's heads
        self.backbone, self.task_head = backbone, task_head
        self.source_names, self.auxiliary = (), nn.ModuleList()
        self.transfer_module, self.dropout = False, 0.0
        self._frozen = []

    def features_and_logits(self, x: Tensor) -> tuple[Features, Tensor]:
        """The backbone's features, and the head's answer."""
        features = self.backbone(x)
        return features, self.task_head(features)

    def exported_state(self) -> dict[str, Tensor]:
        """The backbone's part of the state dict, from which `load_pretrained` starts another student."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(_BACKBONE)}
