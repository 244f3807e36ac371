"""Commands that are a file of their own; ``cli.MODULES`` names them. Options and printing, no work."""
