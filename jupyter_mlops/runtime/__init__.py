"""What runs in a foreign interpreter. Standard library only, Python 3.9 syntax; imports nothing of ours but itself."""
