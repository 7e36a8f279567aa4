"""From a public operator to a kernel or its PyTorch reference: checks, registration, autograd."""
