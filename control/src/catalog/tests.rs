//! The catalog as its callers use it.

mod builder;
mod life;
