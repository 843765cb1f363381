"""How wide each layer of each peer is, chosen before the first step."""
