"""Where a rank's time goes: recorded while it runs, analysed afterwards."""
