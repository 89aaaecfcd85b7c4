"""Self-supervised knowledge transfer (Hong, Yoon, Choi, WACV 2022): the method itself.

Frozen source networks, target networks with one auxiliary head per source, losses, metrics and the paper's
recipes. Loaders and stores live in `pipeline` and `cache`. Importing this package does not load torch.
"""

__version__ = "0.1.0"
