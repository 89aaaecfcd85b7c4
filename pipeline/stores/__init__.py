"""Which store belongs to what: the joint of the two stages."""
