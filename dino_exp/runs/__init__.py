"""The contract on disk: the files of a run and of a sweep, and the names that they have had."""
