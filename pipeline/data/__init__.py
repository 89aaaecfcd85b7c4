"""From dataset names to batches: datasets, the augmentation plan, renderers, the loader."""
