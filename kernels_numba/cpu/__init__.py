"""CPU kernels: one file per operator family. The entry points take arrays, options and the work."""
