"""Pretext tasks: what a network learns from videos alone, before it is fine-tuned (Zhang and Peng, 2018)."""
