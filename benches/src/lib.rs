//! Criterion benches, and the library of postern bench: packet generator, comparison, report.
