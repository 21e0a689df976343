"""Studies: a matrix of runs over one base configuration, its tables, its figures and its report."""
