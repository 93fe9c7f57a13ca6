"""The engines that a Triton model can run: each module makes or runs the files of one kind of expert."""
