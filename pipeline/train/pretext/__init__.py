"""Pretext tasks of videos: what a network learns before it is fine-tuned to a teacher (Zhang and Peng, 2018)."""
