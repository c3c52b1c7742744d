"""A chat in the browser, with Flask."""
