"""What drives the machines of `bequest.protocol`: processes, sockets, files, clocks."""
