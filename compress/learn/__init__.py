"""How a family learns: networks, losses, methods, the loop."""
