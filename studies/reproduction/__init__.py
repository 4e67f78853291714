"""Reproduction: studies of many runs. A study plans its runs (paper_tables and footprint_shapes, on study, grid,
miniatures, rates and budget), an executor carries them out (executors, slurm), records keep the results, and pages show
them (report, summary, figures, comparisons, markdown). Nothing here trains or judges by itself."""
