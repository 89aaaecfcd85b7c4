"""Studies that use both stages: the demo, sweeps, explanations and the papers' tables."""
