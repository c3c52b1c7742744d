"""Becomes a Redis that keeps nothing, on a socket in the file system: `redis_server.py PATH`."""

import os
import sys

options = ["--port", "0", "--unixsocket", sys.argv[1], "--save", "", "--appendonly", "no"]
os.execlp("redis-server", "redis-server", *options)  # noqa: S606, S607 - the one on the PATH
