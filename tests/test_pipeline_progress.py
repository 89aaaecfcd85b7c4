"""Bars move on a terminal only, also where a notebook's FORCE_COLOR makes rich take a pipe for one."""

from pipeline.runtime import Progress


def test_a_pipe_gets_no_moving_bars_under_force_color(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("work", total=3) as progress:
        for _ in range(3):
            progress.advance(1)
        progress.say("done")
    assert capsys.readouterr().err.replace("\x1b[0m", "") == "done\n"
