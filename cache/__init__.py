"""Zarr stores of what frozen source networks said: written once, verified, read a whole view at a time.

Knows nothing of networks or pictures: rows of float16 logits come in by sample id and go out by sample id.
The layout is public, see docs/store-format.md.
"""
