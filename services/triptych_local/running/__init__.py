"""How the services run on one machine: in one process or in several."""
