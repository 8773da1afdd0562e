//! Whole-machine tests in network namespaces.
#![forbid(unsafe_code)]

#[cfg(test)]
mod documents;
#[cfg(test)]
mod rooms;
