"""Reproduce published rows: what each one needs, the runs, and our figures beside the paper's."""
