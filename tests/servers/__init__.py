"""Real inference servers on loopback, for the tests that serve what `wmlc ship` wrote. `make servers` installs them."""
