"""What tests of several rooms share: models, inputs, runs as processes, servers, and faults to put under them."""
