"""What is done with a finished run: score it on a folder, predict, export."""
