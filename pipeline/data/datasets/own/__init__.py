"""Targets of one's own beside folders: lists of image files, tar shards, and Hugging Face data sets."""
