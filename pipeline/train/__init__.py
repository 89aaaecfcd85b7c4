"""Stage two: what a run is (`config`), a student on its way (`trainer`), and the run around it (`train`)."""
