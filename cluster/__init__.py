"""A Job (a Recipe + machines) on a Ray cluster: one laptop process or many hosts, the same code."""
