"""Pictures of data frames, as Altair charts: one module each, with `TITLE`, `CAPTION`, `SEVERAL` and `draw(frames)`.

`draw` returns `None` if the frames don't hold what the picture shows. `SEVERAL` says whether one picture shows several
jobs. The same chart serves screen and paper.
style: fonts, sizes and colours; differences: what tells several jobs apart; groups: jobs that differ only in their
seeds; scaling: a measure by scale; panels: where a sweep's keys are shown. A new chart is a new module and a name below.
"""

# In the order of a report.
NAMES = (
    "learning_curves", "gradient_norms", "sweep_scaling", "gradient_scaling", "sweep_curves", "sweep_heat_map",
    "sweep_coordinates", "costs", "label_counts", "shard_sizes", "site_accuracy", "phases", "confusion",
)  # fmt: skip
