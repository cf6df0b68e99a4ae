"""What people read of a run: HTML report, charts, differences between runs, and the RO-Crate."""
