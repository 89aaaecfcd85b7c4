"""How work is run, never what is computed: device, precision, threads, memory, ranks, paths."""
