"""How good is an encoder."""
