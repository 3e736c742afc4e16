"""What every driver of a Kubernetes cluster needs; importing it does not load the ``kubernetes`` package."""
