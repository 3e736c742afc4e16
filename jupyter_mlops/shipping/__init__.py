"""What a cell needs of its notebook, and how it travels to where the cell runs.

Knows nothing of IPython: it takes the source of a cell and a namespace, and gives a payload with its manifest.
"""

from .shipment import LIMIT, MOST, Shipment, looks_secret, prepare

__all__ = ["LIMIT", "MOST", "Shipment", "looks_secret", "prepare"]
