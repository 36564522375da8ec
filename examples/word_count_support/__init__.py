"""What the word count needs that has nothing to do with Bequest, and the same job over pipes to compare it with."""
