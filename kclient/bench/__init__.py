"""Measure calls: histograms, tables, plots and the machine's name; needs the extra ``bench``."""
