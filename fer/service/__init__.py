"""A trained model over HTTP: requests, limits, batches, metrics, one page. What predicts is given from outside."""
