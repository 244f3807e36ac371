"""The demonstration: the whole line on one machine, on the clock of its data. Nothing in the stations knows of it."""
