"""Cost side by side with peers: ratios measured within one process, interleaved, medians of at least five."""
