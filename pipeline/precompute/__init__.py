"""Stage one: run the frozen sources over every planned view and keep what they say."""
