"""One file a sensor: what it watches, and which run it asks for."""
