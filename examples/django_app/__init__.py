"""A chat in the browser, with Django."""
