"""How work is run, never what: device, precision, threads, memory, ranks, paths."""
