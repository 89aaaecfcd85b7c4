"""Published rows, run again: what each asks for, the runs, and ours beside theirs."""
