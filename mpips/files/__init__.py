"""Files that may be anybody's: opened safely, replaced whole, read as JSON, HDF5 or npz with every bound checked."""
