"""The two stages, and everything that moves pixels: targets, the augmentation plan, renderers, labels, training."""
