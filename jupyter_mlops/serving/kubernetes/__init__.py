"""Serving on an attached Kubernetes cluster: the same gateway and scorers, in pods, with nothing needed but its API."""
