"""The protocol and the control plane in virtual time: played worlds, and the tests that play them."""
