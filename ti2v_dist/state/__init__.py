"""What survives: records, requests, plans, orders. The only room that knows `.ti2v/`."""
