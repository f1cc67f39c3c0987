"""Benchmarks of a checkout, started by `fer bench`: ratios of measurements of one run, which hold on any machine."""
