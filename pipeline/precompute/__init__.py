"""Stage one: run the frozen sources over every planned view and store their logits."""
