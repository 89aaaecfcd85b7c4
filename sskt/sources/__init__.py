"""Frozen source networks: how they are named, opened, checked and run."""
