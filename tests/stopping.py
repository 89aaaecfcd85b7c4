"""Runs that are stopped in the middle of a step."""

from pipeline.train.trainer import Trainer


def stop_after(monkeypatch, n_steps: int) -> None:
    """Ctrl-C in the middle of a step."""
    step, taken = Trainer._take_step, []

    def interrupted(self, batch):
        taken.append(1)
        if len(taken) > n_steps:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(Trainer, "_take_step", interrupted)
