"""What cli.py is made of: the options, what stopping and errors look like, and the larger commands."""
