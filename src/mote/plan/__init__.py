"""Planning, `mote plan`: what a model will take, before there are weights to look at, and what fits a budget."""
