"""Reports of runs: HTML page, charts, differences between runs, and the RO-Crate.

Shows the measures of the paper's section 5 (convergence, time breakdown, traffic, delay). May import the root modules,
process/ to cluster/, tracing/, config/ and provenance/.
"""
