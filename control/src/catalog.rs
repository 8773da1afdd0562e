//! What was declared, by whom, and what became of it.

pub mod model;
