"""What the daemons and their clients say to each other, and how it becomes a packet."""
