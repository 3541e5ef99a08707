"""Recall, latency and throughput, each beside a floor or a peer of the same minute."""
