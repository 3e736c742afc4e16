"""Endpoints: the gateway (HTTP, keys, signature check) and the local driver that runs one scorer per deployment."""
