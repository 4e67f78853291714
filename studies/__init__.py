"""Studies: commands that train and judge the models of the papers (train, evaluate, reproduce, footprints, doctor), the
config of a run, and the failures of all commands. The packages data, detection, training, judging and reproduction hold
the functions that commands call; recorded holds results, with their provenance. A command has arguments and a main;
other modules import nothing from it."""
