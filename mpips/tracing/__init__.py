"""Traces: how each rank spends its time, recorded during the run and analysed afterwards."""
