"""Things a person runs beside the pipeline: thin doors to the verbs of the package."""
