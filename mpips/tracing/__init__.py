"""Traces: how each rank spends its time, recorded during the run and analysed afterwards.

Measures the time breakdown of the paper's section 5. May import the root modules and process/ to cluster/.
"""
