"""One file an asset, each its own documentation: what it holds, where it comes from, and one call into its station."""
