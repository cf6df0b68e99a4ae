"""Recording the order in which messages take effect, and replaying a recorded run to the same bits.

Not in the paper. May import the root modules and process/ to provenance/.
"""
