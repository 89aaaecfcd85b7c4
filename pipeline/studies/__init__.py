"""What is built of both stages: the demo, sweeps, explanations and the papers' tables."""
