"""Studies: commands that train and judge the models of the papers (train, evaluate, reproduce, footprints, doctor), the
config of a run, and the failures of all. Their work is in the rooms data, training, judging and reproduction; recorded
holds results, with their provenance. A command has arguments and a main, and nothing that another module needs."""
