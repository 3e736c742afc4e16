"""The control plane process: REST, change feed, tokens and lifecycle around the core."""
