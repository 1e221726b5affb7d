"""The benchmark of the HashedNets paper: its data sets, its nets and its tables, reproduced."""
