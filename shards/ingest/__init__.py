"""Sources become data sets: listed, planned, checked, written, committed by a manifest; foreign tars are indexed."""
