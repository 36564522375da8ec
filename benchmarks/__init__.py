"""What `bequest bench` measures: Bequest and its peers, in one run, with one harness."""
