//! Whole-machine tests in network namespaces.
