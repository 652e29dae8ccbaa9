"""Serving a state over HTTP by Ray Serve: the front, the router, the experts, and a page for people."""
