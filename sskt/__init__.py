"""Self-supervised knowledge transfer (Hong, Yoon, Choi, WACV 2022): the method itself.

Frozen source networks, target networks with one auxiliary head per source, losses, metrics and the paper's
recipes. No loaders and no stores: those live in `pipeline` and `cache`. Importing this package loads no
torch.
"""

__version__ = "0.1.0"
