"""Sockets, HTTP and the page, around rows of a batch: see `app.make_app`."""
