"""Views become features: plain modules and the protocols of towers."""
