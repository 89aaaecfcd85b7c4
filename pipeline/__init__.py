"""The two stages and all that moves pixels: targets, the augmentation plan, renderers, labels, training."""
