"""``python -m bequest.cli``, for where the script is not on the path."""

from __future__ import annotations

from bequest.cli import main

main()
