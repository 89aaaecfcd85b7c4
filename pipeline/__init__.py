"""The two stages and all that moves pixels: targets, the augmentation plan, renderers, labels, training."""

import os

# On Linux torch then asks for pages of 2 MB instead of 4 KB for large tensors: clearing small ones, at every
# forward anew, took a sixth of stage one's time on a CPU (benchmarks/RESULTS.md). torch reads it once, at its
# first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
