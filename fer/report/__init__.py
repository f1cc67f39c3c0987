"""The report: one page on everything that was run, beside the published results."""
