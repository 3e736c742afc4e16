"""Jobs on a Kubernetes cluster, with nothing but its API; see ``docs/clusters.md``."""
