"""Cost side by side with peers: ratios within one process, in turns, medians of five (three with --quick)."""
