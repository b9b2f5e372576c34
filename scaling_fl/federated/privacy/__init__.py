"""Differential privacy at the level of sites: clipping, noise, and the accounting of what rounds reveal."""
