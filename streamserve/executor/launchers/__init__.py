"""How ranks are started: as processes of this machine, or by Ray."""
