"""Train on stored logits in your own loop: python examples/plain_loop.py TARGET, after sskt precompute."""

import sys

import torch
import torchvision
from torch.nn import functional as F

from pipeline.api import open_training_data
from sskt.losses import soft_cross_entropy

data = open_training_data(sys.argv[1] if len(sys.argv) > 1 else "cifar10", batch_size=128)
source, n_source = next(iter(data.source_classes.items()))
network = torchvision.models.resnet18(num_classes=len(data.classes) + n_source).to(data.device)
optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
for epoch in range(2):
    for batch in data.epoch(epoch):  # uint8 pixels, labels, and the source's logits for exactly these pixels
        logits = network(batch.pixels.float() / 255)
        own, auxiliary = logits.split([len(data.classes), n_source], dim=1)
        loss = F.cross_entropy(own, batch.labels)
        loss = loss + 0.1 * soft_cross_entropy(auxiliary, batch.logits[source].float(), temperature=3.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
